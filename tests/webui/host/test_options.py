"""The settings page, the flags behind it, and the button for ADetailer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dp_adapter.webui.host import options
from tests.webui import fake_webui

ADETAILER = "dynamic_prompting,lora_block_weight,wildcards"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    with fake_webui.installed(tmp_path) as modules:
        yield modules
    logging.getLogger("dp_adapter").handlers.clear()
    logging.getLogger("dp_adapter").propagate = True


@pytest.fixture
def opts(fake: dict[str, ModuleType]) -> fake_webui.Opts:
    return fake_webui.with_settings_page(fake)


def adetailer(opts: fake_webui.Opts, names: str = ADETAILER) -> None:
    opts.add_option("ad_script_names", fake_webui.OptionInfo(names, "Script names to apply to ADetailer"))
    opts.add_option("ad_only_selected_scripts", fake_webui.OptionInfo(True, "Apply only selected scripts"))


def test_before_the_page_exists_the_defaults_count(opts: fake_webui.Opts) -> None:
    assert vars(options.read()) == {option.name: option.default for option in options.OPTIONS}


def test_flags_give_defaults_which_the_page_overrides(opts: fake_webui.Opts, fake: dict[str, ModuleType]) -> None:
    pytest.importorskip("gradio", reason="the page is made of its components")
    vars(fake["modules.shared"]).update(cmd_opts=SimpleNamespace(dp_adapter_cache=5, dp_adapter_loglevel=None))
    options.register()
    assert options.read().checkpoints == 5
    assert options.read().loglevel == "info"
    opts.set("dp_adapter_checkpoints", 3.0)  # sliders give floats
    assert options.read().checkpoints == 3
    assert isinstance(options.read().checkpoints, int)


def test_the_page_has_every_option_in_one_section(opts: fake_webui.Opts) -> None:
    gr = pytest.importorskip("gradio", reason="the page is made of its components")
    options.register()
    options.register()  # at Reload UI
    labels = {key: info for key, info in opts.data_labels.items() if key.startswith("dp_adapter_")}
    assert len(labels) == len(options.OPTIONS) + 1
    assert {info.section for info in labels.values()} == {("dp_adapter", "DP-Adapter")}
    assert labels["dp_adapter_model_dirs"].restrict_api
    assert "requires Reload UI" in labels["dp_adapter_photos_mb"].comment_after
    with gr.Blocks():
        components = opts.components()
    assert [components[f"dp_adapter_{option.name}"].value for option in options.OPTIONS] == [
        option.default for option in options.OPTIONS
    ]
    assert "dp_adapter_join_adetailer" not in opts.data, "a button keeps no value"


def test_the_level_of_messages_changes_at_once(opts: fake_webui.Opts) -> None:
    pytest.importorskip("gradio", reason="the page is made of its components")
    options.register()
    log = logging.getLogger("dp_adapter")
    assert log.level == logging.INFO
    opts.set("dp_adapter_loglevel", "error")
    assert log.level == logging.ERROR
    opts.data["dp_adapter_loglevel"] = "shout"  # an edited config.json
    options.set_up_log()
    assert log.level == logging.INFO
    assert len(log.handlers) == 1


def test_adetailer_gets_our_script_once(opts: fake_webui.Opts) -> None:
    adetailer(opts)
    assert "now keeps the identity" in options.join_adetailer(opts)
    assert opts.data["ad_script_names"] == f"{ADETAILER},dp_adapter"
    assert opts.saved == ["config.json"]
    assert "already" in options.join_adetailer(opts)
    assert opts.data["ad_script_names"] == f"{ADETAILER},dp_adapter"


def test_adetailer_that_runs_all_scripts_needs_no_entry(opts: fake_webui.Opts) -> None:
    adetailer(opts, "")
    opts.data["ad_only_selected_scripts"] = False
    assert "already" in options.join_adetailer(opts)
    assert opts.data["ad_script_names"] == ""


def test_an_empty_list_of_adetailer_gets_no_stray_comma(opts: fake_webui.Opts) -> None:
    adetailer(opts, " ")
    options.join_adetailer(opts)
    assert opts.data["ad_script_names"] == "dp_adapter"


def test_without_adetailer_nothing_is_written(opts: fake_webui.Opts) -> None:
    assert options.join_adetailer(opts) == "ADetailer is not installed."
    assert opts.saved == []


def test_frozen_settings_are_told(opts: fake_webui.Opts, monkeypatch: pytest.MonkeyPatch) -> None:
    adetailer(opts)

    def frozen(*_: Any) -> None:
        raise AssertionError("changing settings is disabled")

    monkeypatch.setattr(opts, "set", frozen)
    assert "changing settings is disabled" in options.join_adetailer(opts)


def test_the_button_shows_adetailers_new_list_in_its_box(opts: fake_webui.Opts) -> None:
    gr = pytest.importorskip("gradio", reason="the page is made of its components")
    adetailer(opts)
    options.register()
    with gr.Blocks() as page:
        components = opts.components()
    (click,) = (
        event
        for event in (page.fns.values() if isinstance(page.fns, dict) else page.fns)
        if getattr(event.fn, "__name__", "") == "join"
    )
    words, names = click.fn()
    assert "now keeps the identity" in words
    assert names == f"{ADETAILER},dp_adapter"
    assert components["dp_adapter_join_adetailer"].value == options.JOIN_CAPTION
