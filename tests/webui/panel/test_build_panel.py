"""The panel as it is built, in both gradios: every field has its widget, and building costs nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dp_adapter.settings import Choice, Integer, Number, Settings, field_at, walk_fields
from dp_adapter.webui.panel.widget_values import ARGS, WIDGET_PATHS, settings_of, widget_value
from tests.webui import gradios

# Fields of list items that have no widget of their own, and how they are reached.
ELSEWHERE = {
    "references[].image": "dropping a photo or adding a saved identity",
    "references[].face.choice": "clicking a face sets 'index'; the other choices are the common ones'",
    "references[].face.index": "clicking a face",
    "references[].face.like": "the common face choice",
    "references[].face.min_size": "the common face choice",
}


@pytest.fixture(scope="module", params=[3, 4])
def facts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = gradios.environment(request.param)
    found = environment.json("tests.webui.panel_facts", str(tmp_path_factory.mktemp("models")))
    assert found["gradio"] == gradios.VERSIONS[request.param]
    return found


def test_the_args_are_in_order(facts: dict[str, Any]) -> None:
    assert tuple(facts["order"]) == ARGS


def test_a_fresh_panel_is_off_and_asks_for_the_defaults(facts: dict[str, Any]) -> None:
    for args in facts["defaults"]:
        assert settings_of(args) == Settings(enabled=False)
        assert settings_of([args[0], True, *args[2:]]) == Settings()
        assert settings_of([{"weight": 0.5}, *args[1:]]) == Settings(weight=0.5)
    assert not facts["shared"], "several panels of one script must not share components"


def test_a_checkpoint_says_what_it_was_made_for_when_it_is_chosen(facts: dict[str, Any]) -> None:
    """In both tabs; another checkpoint takes the words back."""
    small = facts["checkpoints"][:2]
    assert all("small was made for 128 × 128 px, CFG scale 3, Clip skip 1." in words for (words,) in small)
    assert facts["checkpoints"][2:] == [[""], [""]]


def test_building_loads_nothing_heavy(facts: dict[str, Any]) -> None:
    assert not {"torch", "onnxruntime", "cv2", "safetensors", "insightface", "transformers"} & set(facts["loaded"])
    assert not facts["session"]


@pytest.mark.parametrize("path", WIDGET_PATHS)
def test_widgets_say_what_their_field_says(facts: dict[str, Any], path: str) -> None:
    info, widget = field_at(path), facts["widgets"][path]
    assert widget["label"] == info.label
    assert widget["webui_tooltip"] == info.help
    if isinstance(info.kind, Number | Integer):
        assert (widget["kind"], widget["minimum"], widget["maximum"], widget["step"]) == (
            "slider", widget_value(info.kind, info.kind.low), widget_value(info.kind, info.kind.high), info.kind.step,
        )  # fmt: skip
    elif isinstance(info.kind, Choice):
        assert widget["kind"] in ("dropdown", "radio")


def test_labels_and_ids_are_unique(facts: dict[str, Any]) -> None:
    for key in ("label", "elem_id"):
        names = [widget[key] for widget in facts["widgets"].values()]
        assert len(names) == len(set(names))
    assert all(widget["elem_id"].startswith("script_txt2img_dpadapter_") for widget in facts["widgets"].values())


def test_what_is_not_a_setting_stays_out_of_the_hosts_config(facts: dict[str, Any]) -> None:
    assert all(facts["widgets"][name]["do_not_save_to_config"] for name in ("request", "photos", "regions"))


@pytest.mark.parametrize("path", [path for path, _ in walk_fields() if "[]" in path])
def test_fields_of_photos_and_regions_are_reachable(path: str) -> None:
    panel = Path(gradios.ROOT) / "dp_adapter/webui/panel"
    sources = [(panel / file).read_text() for file in ("photos/photo_list.py", "regions/region_list.py")]
    named = {
        "regions[].box.x0", "regions[].box.y0", "regions[].box.x1", "regions[].box.y1",
        "regions[].weight", "regions[].grow", "regions[].feather",
    }  # fmt: skip
    assert path in ELSEWHERE or path in named or any(f'"{path}"' in source for source in sources)
