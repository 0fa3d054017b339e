"""Ends a job in words. The hosts log what a script's hook raises and go on without it, so the job itself has to end."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NoReturn

from starlette.exceptions import HTTPException

from dp_adapter import hints, naming
from dp_adapter.errors import DPAdapterError

UNPROCESSABLE = 422
FROM_PANEL = "dp_adapter_from_panel"  # attribute of a job: it has the panel's args, not the API's request


class DPAdapterStop(HTTPException):
    """What ``process_images`` raises: the API answers 422 with the words; for the panel see ``stopped_in_panel``."""

    def __init__(self, words: str) -> None:
        super().__init__(UNPROCESSABLE, naming.word(words))

    def __str__(self) -> str:
        return str(self.detail)


@contextmanager
def stop_on_error(p: Any) -> Generator[None]:
    """Inside a hook: whatever is raised stops this job before anything more is sampled, and never leaves the hook."""
    try:
        yield
    except DPAdapterError as error:
        stop(p, _error_words(p, error))
    except Exception as error:
        from modules import errors

        errors.report("DP-Adapter failed", exc_info=True)
        stop(
            p,
            f"DP-Adapter met an unexpected {_describe_unexpected(error)}. Nothing was "
            "generated; the console says more. Switch DP-Adapter off to go on without it.",
        )


def _error_words(p: Any, error: DPAdapterError) -> str:
    """An error of a job: the panel's are in the panel's words, with its labels and numbers."""
    if not getattr(p, FROM_PANEL, False):
        return str(error)
    from dp_adapter.webui.panel.messages import explain

    return explain(error)


@contextmanager
def comment_on_error(p: Any, what: str) -> Generator[None]:
    """Around work on a finished picture: what is raised is told below it, and the picture stays."""
    try:
        yield
    except (DPAdapterError, DPAdapterStop) as error:
        p.comment(f"DP-Adapter: {what}: {error}")
    except Exception as error:
        from modules import errors

        errors.report(f"DP-Adapter: {what}", exc_info=True)
        p.comment(f"DP-Adapter: {what} ({_describe_unexpected(error)}); the console says more.")


def _describe_unexpected(error: Exception) -> str:
    return f"{type(error).__name__}: {naming.word(hints.hide_folders(str(error)))}"


def stop(p: Any, words: str) -> None:
    """Makes this job raise the words at its next step: its preparation, its sampling, or the pass about to start."""
    warn(words)

    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        for target, name in targets:
            target.__dict__.pop(name, None)
        raise make_stop(words)

    targets = [(p, "init"), (p, "sample")]
    sampler = getattr(p, "sampler", None)
    if sampler is not None:  # the pass that is about to start
        targets += [(sampler, "sample"), (sampler, "sample_img2img")]
    for target, name in targets:
        setattr(target, name, refuse)


def make_stop(words: str) -> DPAdapterStop:
    """What to raise in the job itself; the console has its one line, with commands in full."""
    sys.stderr.write(f"*** DP-Adapter: {' '.join(hints.spell_out(words).split())}\n")
    return DPAdapterStop(words)


def warn(words: str) -> None:
    """A message that pops up in the browser, where the WebUI runs jobs in the browser's request."""
    import gradio as gr

    words = naming.word(words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # elsewhere gradio would print it, with its place in our source
        gr.Warning(words)
