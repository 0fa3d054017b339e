"""Any valid request survives to_dict, JSON and from_dict exactly, and its JSON form satisfies the schema."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dp_adapter.settings import (
    Choice,
    Curve,
    CurveText,
    Flag,
    Integer,
    Kind,
    ListOf,
    Nullable,
    Number,
    Picture,
    Record,
    RecordOf,
    Settings,
    SiteFactors,
    Text,
    json_schema,
    walk_fields,
)
from dp_adapter.settings.fields import fields_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
PICTURES = st.one_of(
    TEXTS.map("x".__add__),
    st.sampled_from(["identity:Ada L-1", "photo:0123456789abcdef", "data:image/png;base64,AAAA"]),
)
CURVES = st.dictionaries(st.floats(0, 1), st.floats(0, 2), max_size=4).map(lambda d: Curve(tuple(sorted(d.items()))))


def values(kind: Kind) -> st.SearchStrategy[Any]:
    """Valid values of a kind, so that a new field is covered from the moment it is declared."""
    if isinstance(kind, Nullable):
        return st.none() | values(kind.item)
    if isinstance(kind, ListOf):
        return st.lists(values(kind.item), max_size=3, unique=kind.unique).map(tuple)
    if isinstance(kind, RecordOf):
        return record(kind.record)
    if isinstance(kind, SiteFactors):
        pairs = st.dictionaries(st.integers(0, kind.sites - 1), values(kind.factor), max_size=3)
        return pairs.map(lambda factors: tuple(factors.items()))
    if isinstance(kind, Choice):
        return st.sampled_from([*kind.choices, *([f"{kind.own}:Mein Modus-1"] if kind.own else [])])
    simple: dict[type[Kind], Callable[[], st.SearchStrategy[Any]]] = {
        Flag: st.booleans,
        Number: lambda: st.floats(kind.low, kind.high),  # pyright: ignore
        Integer: lambda: st.integers(kind.low, kind.high),  # pyright: ignore
        Picture: lambda: PICTURES if kind.saved else TEXTS.map("x".__add__),  # pyright: ignore
        Text: lambda: TEXTS,
        CurveText: lambda: CURVES,
    }
    return simple[type(kind)]()


def record(cls: type[Record]) -> st.SearchStrategy[Record]:
    drawn = st.fixed_dictionaries({}, optional={info.name: values(info.kind) for info in fields_of(cls)})
    return drawn.map(lambda chosen: cls(**AGREE.get(cls.__name__, dict)(chosen)))


def agree_span(chosen: dict[str, Any]) -> dict[str, Any]:
    start, end = chosen.get("start"), chosen.get("end", 1.0)
    return chosen if start is None else {"start": min(start, end), "end": max(start, end)}


def agree_box(chosen: dict[str, Any]) -> dict[str, Any]:
    sides = {"x0": 0.0, "y0": 0.0, "x1": 1.0, "y1": 1.0, **chosen}
    for low, high in (("x0", "x1"), ("y0", "y1")):
        sides[low], sides[high] = sorted((sides[low] * 0.9, sides[high]))
        sides[high] = max(sides[high], sides[low] + 0.05)
    return sides


def agree_region(chosen: dict[str, Any]) -> dict[str, Any]:
    boxless = chosen.get("kind") == "box" and chosen.get("box") is None
    return {"mask": "m.png", **chosen, **({"kind": "full"} if boxless else {})}


def agree_settings(chosen: dict[str, Any]) -> dict[str, Any]:
    numbers = {identity: new for new, identity in enumerate(sorted({r.identity for r in chosen.get("references", ())}))}
    for name in ("references", "regions"):
        items = chosen.get(name, ())
        chosen[name] = tuple(replace(item, identity=numbers.get(item.identity, 0)) for item in items)
    chosen["expression"] = chosen.get("expression", "").strip() or "laughing"
    chosen["target_age"] = chosen.get("target_age") or 60
    return chosen


AGREE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "Span": agree_span,
    "ReferenceAttention": lambda chosen: {**chosen, **agree_span({"start": 0.0, **chosen})},
    "Box": agree_box,
    "FaceChoice": lambda chosen: {"like": "a.png", **chosen},
    "Reference": lambda chosen: {"image": "a.png", **chosen},
    "Region": agree_region,
    "Tracking": lambda chosen: {**chosen, "moments": tuple(sorted(set(chosen.get("moments", ()))))},
    "Settings": agree_settings,
}

REQUESTS: st.SearchStrategy[Any] = record(Settings)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def assert_plain(node: Any) -> None:
    if isinstance(node, dict):
        assert all(type(key) is str for key in node)
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            assert_plain(item)
    else:
        assert node is None or type(node) in (bool, int, float, str)


@FEW
@given(REQUESTS)
def test_round_trip_is_exact(request: Settings) -> None:
    for changed_only in (False, True):
        data = request.to_dict(changed_only=changed_only)
        assert_plain(data)
        assert data["version"] == 1
        assert Settings.from_dict(data) == request
        assert Settings.from_json(json.dumps(data)) == request
        assert Settings.from_dict(data).to_dict(changed_only=changed_only) == data
    assert hash(pickle.loads(pickle.dumps(request))) == hash(copy.deepcopy(request)) == hash(request)


@FEW
@given(REQUESTS)
def test_every_text_form_reads_back(request: Settings) -> None:
    for path, info in walk_fields():
        if "[" in path:
            continue
        value: Any = request
        for name in path.split("."):
            value = getattr(value, name)
        assert info.kind.parse(info.kind.format(value)) in (info.kind.write(value), info.kind.brief(value))


def test_only_changed_fields() -> None:
    assert Settings().to_dict(changed_only=True) == {"version": 1}
    changed = Settings.from_dict({"levels": {"up": 0.5}, "references": [{"image": "a", "face": {}}], "regions": [{}]})
    assert changed.to_dict(changed_only=True) == {
        "version": 1,
        "references": [{"image": "a", "face": {}}],
        "levels": {"up": 0.5},
        "regions": [{}],
    }


def test_every_field_is_in_the_full_form() -> None:
    full = Settings().to_dict()
    assert full["curve"] == ""
    assert full["span"] == {"start": None, "end": 1.0}
    assert full["levels"]["sites"] == {}
    assert list(full) == list(json_schema()["properties"])


@FEW
@given(REQUESTS)
def test_requests_satisfy_the_schema(request: Settings) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed; the structural test still runs")
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(request.to_dict())
    validator.validate(request.to_dict(changed_only=True))


def test_the_schema_refuses_what_settings_refuse() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed; the structural test still runs")
    jsonschema.Draft202012Validator.check_schema(json_schema())
    validator = jsonschema.Draft202012Validator(json_schema())
    wrong: list[dict[str, Any]] = [
        {"wieght": 1},
        {"weight": 2.5},
        {"weight": "1"},
        {"weight": True},
        {"blend": "ad"},
        {"references": [{}]},
        {"references": [{"image": "a", "face": {"index": 1000}}]},
        {"curve": "1@"},
        {"mode": "custom:"},
        {"levels": {"sites": {"70": 1}}},
        {"version": 2},
    ]
    for data in wrong:
        assert not validator.is_valid(data), data
