"""Where the shell looks for other extensions' encoders, and the device that it names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from dp_adapter.webui.host import compat, shared_session
from dp_adapter.webui.host.shared_session import find_encoder_folders
from tests.webui import fake_webui


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    (tmp_path / "models").mkdir()
    with fake_webui.installed(tmp_path / "models") as modules:
        yield modules


def flags(fake: dict[str, ModuleType], **given: object) -> None:
    vars(fake["modules.shared"])["cmd_opts"] = SimpleNamespace(**given)


def test_the_usual_folders_that_are_there(fake: dict[str, ModuleType], tmp_path: Path) -> None:
    assert find_encoder_folders() == []
    downloads = tmp_path / "extensions" / "sd-webui-controlnet" / "annotator" / "downloads"
    downloads.mkdir(parents=True)
    (tmp_path / "models" / "ControlNetPreprocessor").mkdir()
    assert find_encoder_folders() == [downloads, tmp_path / "models" / "ControlNetPreprocessor"]


def test_settings_and_flags_come_first_and_may_be_relative(fake: dict[str, ModuleType], tmp_path: Path) -> None:
    for name in ("moved", "annotators", "preprocessors"):
        (tmp_path / name).mkdir()
    vars(fake["modules.shared"])["opts"].data["control_net_modules_path"] = "moved"
    flags(
        fake,
        controlnet_annotator_models_path=str(tmp_path / "annotators"),
        controlnet_preprocessor_models_dir=tmp_path / "preprocessors",
    )
    assert [folder.name for folder in find_encoder_folders()] == ["moved", "annotators", "preprocessors"]
    assert find_encoder_folders()[0] == tmp_path / "moved"


def test_the_hosts_device(fake: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def device(task: str) -> str:
        asked.append(task)
        return "cuda:1"

    vars(fake["modules.devices"])["get_device_for"] = device
    assert compat.encoder_device() == "cuda:1" and asked == ["controlnet"], "so that --use-cpu all counts"
    flags(fake, lowvram=True)
    assert compat.encoder_device() == "cpu"
    flags(fake, lowvram=False)
    assert compat.encoder_device() == "cuda:1"
    monkeypatch.setattr(compat, "is_forge", lambda: True)
    name = "ldm_patched.modules.model_management"
    for part in ("ldm_patched", "ldm_patched.modules", name):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    vars(sys.modules[name])["text_encoder_device"] = lambda: "cpu"
    assert compat.encoder_device() == "cpu"


def test_the_session_is_given_both(fake: dict[str, ModuleType], tmp_path: Path) -> None:
    folder = tmp_path / "models" / "ControlNetPreprocessor"
    folder.mkdir()
    shared_session.forget()
    try:
        encoders = shared_session.session().encoders
        assert folder in encoders.folders.all and encoders.placement.device == "cpu"
    finally:
        shared_session.forget()
