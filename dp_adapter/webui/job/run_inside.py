"""Runs a job inside another by the host's own ``process_images``, with nothing left behind.

The order of hooks and what has to be put back were read in modules/processing.py of A1111 1.10.1 and Forge, and in
ADetailer (Bing-su/adetailer, scripts/!adetailer.py), which does the same for its pass.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

from dp_adapter.webui.host import compat
from dp_adapter.webui.job.inner_jobs import TITLE, select_scripts

if TYPE_CHECKING:
    from PIL.Image import Image

_STATE = ("job", "job_no", "job_count", "processing_has_refined_job_count", "textinfo")
_OPTIONS = {"multiple_tqdm": False, "save_init_img": False}


def is_stopped() -> bool:
    """Whether the user asked to interrupt, to skip, or to end after this picture: nothing more is begun."""
    from modules import shared

    state = shared.state
    return bool(state.interrupted or state.skipped or getattr(state, "stopping_generation", False))


def is_cut_short() -> bool:
    """Whether the picture itself was ended early."""
    from modules import shared

    return bool(shared.state.interrupted or shared.state.skipped)


def run(p: Any, p2: Any, words: str) -> Image | None:
    """Runs a job inside ``p``; ``p`` and the host go on as if it had not been.

    Args:
        words: what is going on, for the progress bar.

    Returns:
        Its picture; None where the user ended it.

    Raises:
        Exception: whatever ended it otherwise.
    """
    from modules import processing

    with _end_other_scripts(p), _restore_host(p, p2, words):
        try:
            processed = processing.process_images(p2)
        finally:
            p2.close()
    return None if is_stopped() or not processed.images else processed.images[0]


def parameters_of(p2: Any, prefix: str) -> dict[str, str]:
    """The infotext parameters that an inner job was given per picture, by what follows the prefix."""
    given = cast("Mapping[str, Any]", p2.extra_generation_params)
    ours = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
    listed = {name: cast("list[str | None]", value) for name, value in ours.items() if isinstance(value, list)}
    return {name: values[0] for name, values in listed.items() if values and values[0] is not None}


@contextmanager
def _end_other_scripts(p: Any) -> Generator[None]:
    """Other scripts hold one job's state at a time (ControlNet): they end this one, and take it up again.

    They take it up after the batch's last picture, where ADetailer has them do so.
    """
    from modules import processing

    others = select_scripts(p, ours=False)
    others.postprocess(_copy_for_scripts(p), processing.Processed(p, [], p.seed, ""))
    try:
        yield
    finally:
        if p.batch_index == p.batch_size - 1:
            again = _copy_for_scripts(p)
            others.before_process(again)
            others.process(again)


def _copy_for_scripts(p: Any) -> Any:
    """A copy of the job for scripts to write on."""
    other = copy.copy(p)
    for name in ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds"):
        setattr(other, name, list(getattr(other, name)))
    other.extra_generation_params = dict(other.extra_generation_params)
    return other


@contextmanager
def _restore_host(p: Any, p2: Any, words: str) -> Generator[None]:
    """What a job changes in the host, and nobody but it undoes."""
    from modules import processing, shared

    original = getattr(processing, "__controlnet_original_process_images_inner", None)
    state: dict[str, Any] = shared.state.__dict__
    flags: dict[str, Any] = shared.cmd_opts.__dict__
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (shared.opts.data, dict(_OPTIONS)),
        (flags, {"no_prompt_history": True}),  # params.txt holds what the user asked for
        (vars(processing), {} if original is None else {"process_images_inner": original}),  # not ControlNet's batch
        (state, {name: getattr(shared.state, name) for name in _STATE if hasattr(shared.state, name)}),
    ]
    with ExitStack() as stack:
        for target, values in changes:
            stack.enter_context(_change_entries(target, values))
        shared.state.job_count += 2 if getattr(p2, "enable_hr", False) else 1
        shared.state.textinfo = f"{TITLE}: {words}"
        try:
            yield
        finally:
            compat.merge_tokens_again(p)


@contextmanager
def _change_entries(target: dict[str, Any], values: dict[str, Any]) -> Generator[None]:
    """Some entries of a dictionary changed, and as before afterwards."""
    before = {name: target[name] for name in values if name in target}
    target.update(values)
    try:
        yield
    finally:
        for name in values:
            if name in before:
                target[name] = before[name]
            else:
                target.pop(name, None)
