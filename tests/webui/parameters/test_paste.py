"""Pasting a picture's parameters restores every widget of the panel."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dp_adapter.settings import Settings
from dp_adapter.webui.panel.widget_values import ARGS, args_of, settings_of
from dp_adapter.webui.parameters import infotext
from dp_adapter.webui.parameters.paste import NOTE, Paster
from tests.webui.parameters.test_infotext import HASH, Saved, changed_settings, host_read, host_text


class Kept:
    """A session that holds these photos."""

    def __init__(self, *photos: str) -> None:
        self.dropped_photos = set(photos)
        self.identities = Saved({})


class Panel:
    """Widgets by name, into which parameters are pasted as the hosts do it."""

    def __init__(self, paster: Paster) -> None:
        self.values: dict[str, Any] = dict(zip(ARGS, args_of(Settings(enabled=False)), strict=True)) | {NOTE: ""}
        self.fields = paster.fields({name: name for name in self.values})

    def paste(self, params: dict[str, str]) -> None:
        for name, restore in self.fields:
            value = restore(params)
            if value is not None:
                self.values[name] = value

    @property
    def settings(self) -> Settings:
        return settings_of([self.values[name] for name in ARGS])


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def panel(warned: list[str]) -> Panel:
    return Panel(Paster(lambda: Kept(HASH, "fedcba9876543210"), lambda: True, warned.append))


def parameters(settings: Settings, **names: str) -> dict[str, str]:
    return host_read(host_text(infotext.write_parameters(settings, names)))


def test_every_widget_is_restored_those_at_their_default_too(panel: Panel, warned: list[str]) -> None:
    panel.paste(parameters(changed_settings()))
    assert panel.settings == changed_settings()
    panel.paste(parameters(Settings()))
    assert panel.settings == Settings()
    assert warned == []


def test_photos_come_back_with_their_names(panel: Panel) -> None:
    settings = Settings.from_dict({"references": [{"image": f"photo:{HASH}"}, {"image": "identity:Bea"}]})
    panel.paste(parameters(settings, **{HASH: "anna.jpg"}))
    photos = json.loads(panel.values["photos"])
    assert [photo.get("name") for photo in photos] == ["anna.jpg", None]
    assert panel.settings == settings


def test_parameters_without_us_disable_and_leave_the_rest_alone(panel: Panel) -> None:
    panel.paste(parameters(changed_settings()))
    panel.paste({"Steps": "20"})
    assert panel.settings == changed_settings().replace(enabled=False)


def test_a_missing_photo_is_told_once_per_paste(panel: Panel, warned: list[str]) -> None:
    settings = Settings.from_dict({"references": [{"image": "photo:aaaaaaaaaaaaaaaa"}], "weight": 0.3})
    for _ in range(2):
        panel.paste(parameters(settings, aaaaaaaaaaaaaaaa="anna.jpg"))
    assert panel.settings == settings, "it stays listed, so that the job says what is missing too"
    assert warned == ["Photo 1 ('anna.jpg') is not here any more: drop it again."] * 2
    assert "anna.jpg" in panel.values[NOTE]
    panel.paste(parameters(Settings()))
    assert panel.values[NOTE] == ""


def test_contradicting_parameters_touch_nothing(panel: Panel, warned: list[str]) -> None:
    panel.paste(parameters(changed_settings()))
    panel.paste({"DP-Adapter": "1", "DP-Adapter face choice": "like"})
    assert panel.settings == changed_settings()
    assert "face.like" in warned[0]


def test_the_settings_page_can_forbid_it(warned: list[str]) -> None:
    panel = Panel(Paster(Kept, lambda: False, warned.append))
    before = dict(panel.values)
    panel.paste(parameters(changed_settings()))
    panel.paste({"Steps": "20"})
    assert panel.values == before


def test_the_session_is_not_made_for_parameters_without_photos() -> None:
    def made() -> Kept:
        raise AssertionError("starting a session loads torch")

    panel = Panel(Paster(made, lambda: True, lambda words: None))
    panel.paste(parameters(Settings(weight=0.25)))
    assert panel.settings == Settings(weight=0.25)


def test_the_two_tabs_agree_so_that_send_to_img2img_carries_the_panel_over() -> None:
    one, other = (Panel(Paster(Kept, lambda: True, lambda words: None)) for _ in range(2))
    assert [restore for _, restore in one.fields] == [restore for _, restore in other.fields]
    assert len({restore for _, restore in one.fields}) == len(one.fields)
    assert "Size-1" not in [restore for _, restore in one.fields]
