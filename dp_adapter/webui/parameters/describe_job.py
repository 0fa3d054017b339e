"""A job's parameters, made from what happened: the request where it acts, else that nothing did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dp_adapter.session.results.best_of import describe_picture
from dp_adapter.settings.result_sections import RESULT
from dp_adapter.webui.parameters import infotext

if TYPE_CHECKING:
    from dp_adapter.modes import Mode
    from dp_adapter.session import Explanation
    from dp_adapter.settings import Settings


def describe(p: Any, settings: Settings, mode: Mode, explanation: Explanation, idle: str) -> None:
    """Writes the parameters of the pictures that are finished next, in place of what was written before.

    Args:
        settings: the request, without pictures.
        mode: the request's.
        explanation: what its automatic values stand for, and which photos are left out.
        idle: why nothing acts, in few words; empty where something does.
    """
    written: dict[str, Any] = p.extra_generation_params
    for key in [key for key in written if infotext.is_request(key)]:
        del written[key]
    facts = {"identity": f"none acted: {idle}" if idle else "", "photos left out": " ".join(explanation.left_out)}
    for name, words in facts.items():
        written.pop(RESULT + name, None)
        if words:
            written[RESULT + name] = words
    if not idle:
        used = settings.with_fields(explanation.used) if explanation.used else settings
        written.update(infotext.write_parameters(describe_picture(used, mode), {}))


def forget(p: Any) -> None:
    """Takes out what a job with the same parameters wrote: X/Y/Z shares one mapping between its cells."""
    for key in [key for key in p.extra_generation_params if key == infotext.KEY or key.startswith(f"{infotext.KEY} ")]:
        del p.extra_generation_params[key]


def add_notes(p: Any, notes: list[str]) -> None:
    """Puts into an API's answer what the panel shows below the pictures; too long for the pictures' parameters."""
    if notes and getattr(p, "is_api", False):
        p.extra_generation_params[f"{RESULT}notes"] = " ".join(notes)
