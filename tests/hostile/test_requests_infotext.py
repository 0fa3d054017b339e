"""Pasted parameters with anything in them become settings, with notes on what could not be read."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from dp_adapter.errors import DPAdapterError
from dp_adapter.settings import Settings, infotext_name, walk_fields
from dp_adapter.webui.parameters import infotext
from dp_adapter.webui.parameters.xyz_axes import field_axes, list_axes
from tests.hostile.tries import hostile

NAMES = [infotext_name(path) for path, _ in walk_fields()]
STRANGE = [
    "", "null", "auto", "[]", "[" * 50_000, '{"a":' * 5000, "json [", "json " + "[" * 50_000, 'json "\\ud800"',
    "9" * 5000, "1" * 20_000 + "x", "1e400", "NaN", "-Infinity",
    "photo:0123456789abcdef " + "n" * 100_000, "identity:\ud800",
    "photo:0123456789abcdef \ud800", "3=0.5, 7=1", "1=1," * 50_000, "9" * 9000 + "=1", "0@0," * 2000, "box", "mask",
    "person 99999", "custom:x", "init, init", ",", '"', "\0", "\u202e", " " * 50_000 + "x",
]  # fmt: skip
LISTS = [
    "1" * 20_000 + "x", "9" * 400, "0-1 [" + "9" * 5000 + "]", "0-1 [1000]," * 3000, "0-1e400", "1e400",
    "9" * 400 + "-1", "0-1 (+0)", "0-" + "9" * 400, " " * 20_000 + "x", "x," * 50_000, '"' * 999, "\ud800",
]  # fmt: skip
TEXTS = st.text(max_size=60) | st.sampled_from(STRANGE)
KEYS = st.one_of(
    st.sampled_from(NAMES),
    st.builds("{} {}".format, st.sampled_from(NAMES), st.integers(0, 120)),
    st.builds("{} {}".format, st.just(infotext.KEY), st.text(max_size=30)),
    st.sampled_from([infotext.KEY + " " + "k" * 50_000, infotext.KEY + " \ud800", infotext.KEY]),
)


def require_reading(params: dict[str, str]) -> None:
    read = infotext.read_parameters(params)
    assert read is not None
    assert read.settings is not None or read.notes
    for words in (*read.notes, *read.names.values()):
        assert len(words.encode()) < 9000
    assert len(read.notes) < 30
    if read.settings is not None:
        json.dumps(read.settings.to_dict(), ensure_ascii=False).encode()
        assert Settings.from_dict(read.settings.to_dict()) == read.settings


@given(st.dictionaries(KEYS, TEXTS, max_size=12), TEXTS)
@hostile
def test_parameters_with_anything_in_them(params: dict[str, str], version: str) -> None:
    require_reading({**params, infotext.KEY: version})


def test_thousands_of_refused_parameters_are_read_in_one_go() -> None:
    params = {f"{name} {number}": "nothing" for name in NAMES for number in range(1, 100)}
    require_reading({infotext.KEY: "1", **params, **{f"{infotext.KEY} no {n}": "1" for n in range(10_000)}})


@given(
    st.sampled_from([list_axes()[-1], *(axis for path, axis in field_axes() if path != "model")]),
    st.text(max_size=40) | st.text("0123456789-+.[]() e,/", max_size=40) | st.sampled_from(LISTS),
)
@hostile
def test_values_of_an_axis_with_anything_in_them(axis: object, text: str) -> None:
    try:
        texts = axis.texts(text)  # type: ignore[attr-defined]
        assert len(texts) <= 1000
        for one in texts[:20]:
            axis.show(axis.value(one))  # type: ignore[attr-defined]
    except DPAdapterError as error:
        assert len(str(error).encode()) < 9000
