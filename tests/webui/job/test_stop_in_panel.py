"""A user's error in the panel: words below the gallery and one line in the console, whatever host shows them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.webui import fake_webui

pytest.importorskip("starlette", reason="the hosts bring it")
WORDS = "There is no photo. Give one."


class Runner:
    """``ScriptRunner`` of the hosts, as far as a panel asks it: a chosen script makes the pictures, or nobody."""

    def __init__(self, script: Callable[[Any], Any] | None = None) -> None:
        self.script = script

    def run(self, p: Any, *_args: Any) -> Any:
        return None if self.script is None else self.script(p)


class Processed:
    def __init__(self, p: Any, images: list[Any], seed: int, info: str, infotexts: list[str]) -> None:
        self.images, self.seed, self.info, self.infotexts = images, seed, info, infotexts
        self.comments = "".join(f"{comment}\n" for comment in p.comments)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """``panel(runner, p)`` is a click on Generate, as ``txt2img`` and ``img2img`` of all hosts do it."""
    with fake_webui.installed(tmp_path) as fake:
        from dp_adapter.webui.job import stop

        monkeypatch.setattr(stop, "warn", lambda _words: None)  # pyright: ignore[reportUnknownLambdaType]
        calls: list[Any] = []

        def process_images(p: Any) -> Any:
            calls.append(p)
            if p.refused == "hook":
                stop.stop(p, WORDS)
                p.init()
            if p.refused == "call":
                raise stop.make_stop(WORDS)
            if p.refused == "other":
                raise RuntimeError("out of memory")
            return "pictures"

        img2img: Any = ModuleType("modules.img2img")
        img2img.process_images = process_images
        monkeypatch.setitem(sys.modules, "modules.img2img", img2img)
        processing = fake["modules.processing"]
        vars(processing).update(process_images=process_images, Processed=Processed)

        def panel(runner: Runner, p: Any, where: Any = processing) -> Any:
            from dp_adapter.webui.job import stop_in_panel

            stop_in_panel.return_stops(runner)
            made = runner.run(p)
            return where.process_images(p) if made is None else made

        yield SimpleNamespace(panel=panel, processing=processing, img2img=img2img, original=process_images, fake=fake)


def job(refused: str = "", **settings: Any) -> Any:
    p: Any = SimpleNamespace(refused=refused, is_api=False, seed=7, comments=[], init=None, **settings)
    p.comment = p.comments.append
    return p


@pytest.mark.parametrize("refused", ["hook", "call"])
@pytest.mark.parametrize("tab", ["processing", "img2img"])
def test_a_refusal_is_words_below_an_empty_gallery(
    host: Any, refused: str, tab: str, capfd: pytest.CaptureFixture[str]
) -> None:
    made = host.panel(Runner(), job(refused), getattr(host, tab))
    assert made.images == [] and made.comments == f"DP-Adapter: {WORDS}\n"
    assert capfd.readouterr().err == f"*** DP-Adapter: {WORDS}\n"
    assert host.processing.process_images is host.img2img.process_images is host.original
    assert host.fake["modules.shared"].state.interrupted  # the other pictures of a folder


def test_a_refusal_inside_a_script_ends_the_script(host: Any, capfd: pytest.CaptureFixture[str]) -> None:
    loopback = Runner(host.original)
    made = host.panel(loopback, job("hook"))
    assert made.images == [] and WORDS in made.comments and len(capfd.readouterr().err.splitlines()) == 1


def test_pictures_and_other_errors_pass(host: Any) -> None:
    runner = Runner()
    assert host.panel(runner, job()) == host.panel(runner, job()) == "pictures"
    with pytest.raises(RuntimeError, match="out of memory"):
        host.panel(runner, job("other"))
    assert host.processing.process_images is host.img2img.process_images is host.original


def test_the_api_has_the_exception(host: Any) -> None:
    p = job("hook", user="api")
    p.is_api = True
    with pytest.raises(Exception, match=WORDS) as stopped:
        host.panel(Runner(host.original), p)
    assert vars(stopped.value)["status_code"] == 422
