"""The panel's values make a request, and a request the panel's values, over every field."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from dp_adapter.errors import SettingsError
from dp_adapter.settings import Settings, walk_fields
from dp_adapter.webui.panel.widget_values import ARGS, WIDGET_PATHS, args_of, default_of, settings_of, values_of
from tests.settings.test_settings_round_trip import FEW, REQUESTS


def panel(**changes: object) -> list[object]:
    """Args of an enabled panel with some widgets changed; dots in names are written as two underscores."""
    values = {"request": "", "enabled": True, "photos": "", "regions": ""}
    values |= {path: default_of(path) for path in WIDGET_PATHS}
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    assert list(values) == list(ARGS), "there is no such widget"
    return list(values.values())


@FEW
@given(REQUESTS)
def test_every_request_survives_the_panel(request: Settings) -> None:
    assert settings_of(args_of(request)) == request
    over_the_wire = json.loads(json.dumps(args_of(request)))
    assert settings_of(over_the_wire) == request


def test_every_field_is_in_the_args() -> None:
    names = {path for path, _ in walk_fields() if "[]" not in path}
    assert names == set(WIDGET_PATHS) | {"enabled", "references", "regions"}
    assert list(values_of(Settings())) == list(ARGS[1:])


def test_a_fresh_panel_asks_for_the_defaults() -> None:
    assert settings_of(panel()) == Settings()
    assert settings_of(["", True]) == Settings()
    assert settings_of(["", True, *[None] * (len(ARGS) - 2)]) == Settings()
    assert settings_of(panel(enabled=False)) == settings_of([]) == Settings(enabled=False)


def test_the_api_gives_the_whole_request_in_the_first_arg() -> None:
    request = {"weight": 0.5, "references": [{"image": "identity:Ada"}]}
    for form in (request, json.dumps(request)):
        settings = settings_of([form, *panel(enabled=False, weight=2.0)[1:]])
        assert settings == Settings.from_dict(request)
        assert settings.enabled
    with pytest.raises(SettingsError, match="wieght"):
        settings_of([{"wieght": 1}])
    with pytest.raises(SettingsError, match="not JSON"):
        settings_of(["{", True])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([True], r"args\[0\]: true is not a request"),
        ([False, {"weight": 0.5}], r"args\[0\]: false is not a request"),
        ([None], r"args\[0\]: null is not a request"),
        ([[1, 2]], r"args\[0\]: a list is not a request"),
        ([5], r"args\[0\]: 5 is not a request"),
        ([{"weight": 0.5}, {"weight": 0.6}], r"args\[1\]: an object is one too many"),
        ([{"weight": 0.5}, False, {"weight": 0.6}], r"args\[2\]: an object is one too many"),
        ([{"weight": 0.5}, 5], r"args\[1\]: 5 is one too many"),
        (["", {"weight": 0.5}], r"args\[1\]: an object is one too many"),
        (["", "weight"], r"args\[1\]: 'weight' is one too many"),
        (["weight"], "not JSON"),
    ],
)
def test_what_no_panel_can_hold_is_refused_over_a_panel_that_is_off(args: list[object], words: str) -> None:
    """The hosts lay the args of a request over those of a panel that is off."""
    with pytest.raises(SettingsError, match=words):
        settings_of([*args, *panel(enabled=False)[len(args) :]])


def test_photos_keep_their_names_to_themselves() -> None:
    photos = [{"image": "photo:0123456789abcdef", "weight": 0.5, "name": "Ada at sea.jpg", "face": {"index": 2}}]
    (reference,) = settings_of(panel(photos=json.dumps(photos))).references
    assert (reference.image, reference.weight) == ("photo:0123456789abcdef", 0.5)
    assert reference.face is not None
    assert reference.face.index == 2


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("span__start", "", None),
        ("span__start", " Auto ", None),
        ("span__start", "0,25", 0.25),
        ("span__start", 0.25, 0.25),
        ("target_age", "60", 60),
        ("structure", None, None),
        ("curve", "0@0; 1@.5", "0.0@0.0, 1.0@0.5"),
        ("tracking__moments", "0.1, 0.2", [0.1, 0.2]),
        ("tracking__moments", "", []),
        ("tracking__sources", ["preview", "init"], ["preview", "init"]),
        ("levels__sites", "3: 0.5, 12: 0", {"3": 0.5, "12": 0.0}),
        ("levels__sites", '{"3": 0.5}', {"3": 0.5}),
        ("levels__sites", " ", {}),
        ("performance__memory_mb", 64.0, 64),
    ],
)
def test_what_can_be_typed(path: str, text: object, value: object) -> None:
    node: Any = settings_of(panel(**{path: text})).to_dict()
    for name in path.split("__"):
        node = node[name]
    assert node == value


@pytest.mark.parametrize(
    ("path", "text", "field", "words"),
    [
        ("span__start", "soon", "span.start", "'soon' is not a number"),
        ("span__start", "2", "span.start", "above the maximum 1"),
        ("curve", "1@", "curve", "is not a point"),
        ("levels__sites", "3; 0.5", "levels.sites", "is not an object of sites and factors"),
        ("levels__sites", "70: 1", "levels.sites['70']", "only 0 to 69"),
        ("tracking__moments", "0.1 0.2", "tracking.moments[0]", "is not a number"),
        ("photos", "{", "references", "is not a JSON list"),
        ("photos", "{}", "references", "an object is not a list"),
        ("photos", '["a"]', "references[0]", "is not an object with fields"),
        ("regions", '[{"kind": "box"}]', "regions[0].box", "is missing"),
        ("weight", "strong", "weight", "is not a number"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name_and_a_disabled_panel_refuses_nothing(
    path: str, text: object, field: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        settings_of(panel(**{path: text}))
    assert caught.value.field == field
    assert settings_of(panel(enabled=False, **{path: text})) == Settings(enabled=False)


def test_the_module_needs_no_webui() -> None:
    heavy = "{'gradio', 'modules', 'torch', 'numpy', 'PIL'}"
    code = f"import sys, dp_adapter.webui.panel.widget_values; print(*{heavy} & set(sys.modules))"
    repository = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository)
    assert done.stdout.split() == []
