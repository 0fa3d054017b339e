"""The one test that walks all fields, and what is made from them: schema, page, paths."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dp_adapter.errors import SettingsError
from dp_adapter.settings import (
    VERSION,
    Choice,
    Curve,
    FieldInfo,
    Integer,
    Levels,
    ListOf,
    Nullable,
    Number,
    Parts,
    Reference,
    Region,
    Settings,
    Span,
    field_at,
    infotext_name,
    json_schema,
    walk_fields,
)
from dp_adapter.settings.reference_page import render_page

REPOSITORY = Path(__file__).parents[2]
FIELDS = list(walk_fields())
# One photo and one region, so that items of lists have a path; extras that some choices need.
BASE = Settings.from_dict(
    {
        "references": [{"image": "a.png", "face": {"like": "b.png"}}],
        "regions": [{"box": {"x0": 0.25, "y0": 0.25, "x1": 0.75, "y1": 0.75}, "mask": "m.png"}],
        "face": {"like": "b.png"},
        "target_age": 60,
        "expression": "laughing",
    }
)


def concrete(path: str) -> str:
    return path.replace("[]", "[0]")


def value_at(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name, index in re.findall(r"(\w+)(?:\[(\d+)\])?", path):
        value = getattr(value, name)
        value = value[int(index)] if index else value
    return value


@pytest.mark.parametrize(("path", "info"), FIELDS, ids=[path for path, _ in FIELDS])
def test_every_field_says_what_it_is(path: str, info: FieldInfo) -> None:
    assert info.help.endswith(".")
    assert "  " not in info.help
    assert info.label == info.label.strip()
    assert re.fullmatch(r"\w[\w \-/]+", info.infotext), "A1111 would not read this key back"
    assert info.infotext.startswith("DP-Adapter ")
    assert not re.search(r"\d$", info.infotext), "A1111 splits values like 2x3 into keys with numbers"
    if not info.required:
        assert info.kind.check(info.default) == info.default, "the default is not valid"
    assert field_at(path) == field_at(concrete(path)) == info


@pytest.mark.parametrize(("path", "info"), FIELDS, ids=[path for path, _ in FIELDS])
def test_every_field_can_be_set_and_refuses_what_it_must(path: str, info: FieldInfo) -> None:
    kind = info.kind.item if isinstance(info.kind, Nullable) else info.kind
    where = concrete(path)
    if isinstance(kind, Number | Integer):
        assert 0 < kind.step <= kind.high - kind.low
        middle = kind.low + kind.step if isinstance(kind, Integer) else (kind.low + kind.high) / 2
        middle = {"box.x0": 0.5, "identity": 0}.get(where.split("].")[-1], middle)
        assert value_at(BASE.with_field(where, middle), where) == middle
        for beyond, nearest in ((kind.low - 1, kind.low), (kind.high + 1, kind.high)):
            with pytest.raises(SettingsError) as caught:
                BASE.with_field(where, beyond)
            assert (caught.value.field, caught.value.nearest) == (where, nearest)
    elif isinstance(kind, Choice):
        for choice in kind.choices:
            assert value_at(BASE.with_field(where, choice), where) == choice
        with pytest.raises(SettingsError) as caught:
            BASE.with_field(where, kind.choices[-1] + "x")
        assert (caught.value.field, caught.value.nearest) == (where, kind.choices[-1])
    else:
        value = value_at(BASE, where)
        assert value_at(BASE.with_field(where, value), where) == value


def test_names_are_unique() -> None:
    for names in (
        [p for p, _ in FIELDS],
        [i.label.lower() for _, i in FIELDS],
        [i.infotext.lower() for _, i in FIELDS],
    ):
        assert len(names) == len(set(names))


def test_walk_reaches_the_depths() -> None:
    paths = [path for path, _ in FIELDS]
    for path in (
        "weight",
        "references",
        "references[].face.choice",
        "regions[].box.x0",
        "levels.sites",
        "hires.span.end",
    ):
        assert path in paths
    assert "span" not in paths
    assert "regions[].box" not in paths


def test_infotext_names() -> None:
    assert infotext_name("weight") == "DP-Adapter weight"
    assert infotext_name("hires.span.start") == "DP-Adapter hires start"
    assert infotext_name("references[1].weight") == "DP-Adapter photo weight 2"


def test_text_forms() -> None:
    examples = {"enabled": "True", "weight": "0.5", "tracking.moments": "0.1, 0.2", "tracking.sources": "preview,init"}
    examples |= {"curve": "1@0,0@1", "levels.sites": '{"3": 0.5}', "mode": "custom:x", "structure": "null"}
    changes = {path: field_at(path).kind.parse(text) for path, text in examples.items()}
    settings = Settings().with_fields(changes)
    assert settings.tracking.moments == (0.1, 0.2)
    assert settings.tracking.sources == ("preview", "init")
    assert settings.curve == Curve(((0.0, 1.0), (1.0, 0.0)))
    assert settings.levels.sites == ((3, 0.5),)
    with pytest.raises(SettingsError, match=r"^weight: 'much' is not a number"):
        Settings().with_field("weight", field_at("weight").kind.parse("much"))


def test_setting_fields_by_path() -> None:
    settings = Settings().with_field("references", [Reference("a.png")])
    changed = settings.with_fields(
        {
            "references[0].face.choice": "left",
            "levels.up": 0.5,
            "levels.sites": ((3, 0.5),),
            "span": Span(0.1, 0.5),
            "span.end": 0.75,
            "curve": Curve(((0.5, 1.0),)),
            "regions": (Region("full"),),
            "mode": "age",
            "target_age": 70,
        }
    )
    assert changed.references[0].face is not None
    assert changed.references[0].face.choice == "left"
    assert changed.levels == Levels(up=0.5, sites=((3, 0.5),))
    assert changed.span == Span(0.1, 0.75)
    assert (changed.mode, changed.target_age) == ("age", 70)
    assert settings.references[0].face is None
    assert settings.replace(weight=1) == settings.with_field("weight", 1.0)


def test_part_weights_user_before_mode_before_automatic() -> None:
    weights = Parts(skin=1.0, mouth=0.25).weights({"skin": 0.5, "brows": 0.5})
    assert (weights["skin"], weights["mouth"], weights["brows"]) == (1.0, 0.25, 0.5)
    assert (weights["eyes"], weights["hair"], weights["background"]) == (1.0, 0.0, 0.0)


def _objects(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, list):
        return [found for item in node for found in _objects(item)]
    if not isinstance(node, dict):
        return []
    return [node, *(found for item in node.values() for found in _objects(item))]


def test_schema_structure() -> None:
    schema = json_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["properties"]["version"]["const"] == VERSION
    records = [schema, *schema["$defs"].values()]
    assert all(record["additionalProperties"] is False for record in records)
    references = {node["$ref"].rpartition("/")[2] for node in _objects(schema) if "$ref" in node}
    assert references == set(schema["$defs"])
    for record in records:
        for name, field in record["properties"].items():
            assert field["title"]
            assert field["description"]
            assert ("default" in field) != (name in record.get("required", ())), name
    assert schema["properties"]["weight"] | {"title": "", "description": ""} == {
        "type": "number",
        "minimum": 0.0,
        "maximum": 2.0,
        "default": 0.8,
        "title": "",
        "description": "",
    }
    assert schema["properties"]["blend"]["enum"][0] == "auto"
    assert schema["$defs"]["Reference"]["required"] == ["image"]


def test_lists_of_records_are_the_only_leaves_with_records() -> None:
    inner = [path for path, info in FIELDS if isinstance(info.kind, ListOf) and "[]" not in path]
    assert inner == ["references", "regions", "tracking.sources", "tracking.moments"]


def test_the_page_is_up_to_date() -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == render_page(), "run: python -m dp_adapter.settings.reference_page > docs/settings.md"


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, dp_adapter.settings; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "dp_adapter" in loaded
    third_party = loaded - set(sys.stdlib_module_names) - {"dp_adapter"}
    assert not third_party & {"torch", "numpy", "PIL", "cv2", "gradio", "pydantic", "onnxruntime", "transformers"}
