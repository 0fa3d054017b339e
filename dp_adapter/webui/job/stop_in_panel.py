"""A stopped job ends in the panel as one without pictures, with the words below the gallery.

What reaches the hosts as an exception is printed by them with its traceback and the job's arguments, and Forge classic
and reForge show another error in its place. The API needs the exception, which it answers with status 422.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from dp_adapter.webui.job.stop import DPAdapterStop

_RUN, _PROCESS = "run", "process_images"
_CALLERS = ("modules.processing", "modules.img2img")  # in whose names the hosts look up what makes the pictures


def return_stops(runner: Any) -> None:
    """Has a runner of scripts hand back the words of a job that was stopped; once, for as long as it lives.

    The hosts' panels ask it first (``scripts_txt2img.run``), and make the pictures themselves where no script does.
    """
    if _RUN in vars(runner):
        return
    run: Callable[..., Any] = runner.run

    def running(p: Any, *args: Any) -> Any:
        try:
            made = run(p, *args)
        except DPAdapterStop as error:
            return _end_without_pictures(p, error)
        if made is None:
            _catch_next()
        return made

    setattr(runner, _RUN, running)


def _catch_next() -> None:
    """The same for the next call of what makes the pictures, which comes at once."""
    modules = [module for name in _CALLERS if hasattr(module := sys.modules.get(name), _PROCESS)]
    before = [(module, getattr(module, _PROCESS)) for module in modules]

    def making(process: Callable[..., Any]) -> Callable[..., Any]:
        def process_images(p: Any, *args: Any, **kwargs: Any) -> Any:
            for module, function in before:
                setattr(module, _PROCESS, function)
            try:
                return process(p, *args, **kwargs)
            except DPAdapterStop as error:
                return _end_without_pictures(p, error)

        return process_images

    for module, function in before:
        setattr(module, _PROCESS, making(function))


def _end_without_pictures(p: Any, error: DPAdapterStop) -> Any:
    """What the panel shows of a job that was stopped: the words below an empty gallery."""
    if getattr(p, "is_api", False):
        raise error
    from modules import processing, shared

    shared.state.interrupted = True  # of a folder of pictures the others would be refused, too
    p.comment(f"DP-Adapter: {error}")
    return processing.Processed(p, [], p.seed, "", infotexts=[""])
