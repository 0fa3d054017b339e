"""The model list: what fits the loaded checkpoint first, the rest with the reason; the question about a variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from dp_adapter.errors import DPAdapterError
from dp_adapter.settings import Choice, field_at
from dp_adapter.webui.host import compat, shared_session
from dp_adapter.webui.panel.handlers import EventBinder, Updates
from dp_adapter.webui.panel.host_components import HOST
from dp_adapter.webui.panel.messages import status_html
from dp_adapter.webui.panel.widget_values import MISFIT
from dp_adapter.webui.panel.widgets import Widgets

if TYPE_CHECKING:
    from dp_adapter.session.model_list import ModelFacts


class ModelPicker:
    """The part's components: the list, the question about the variant, and the button that reads the folders.

    Attributes:
        beside: by path, the lists of files that act beside a model; they are made elsewhere in the panel.
    """

    def __init__(self, widgets: Widgets) -> None:
        with gr.Row(elem_classes=["dp-adapter-tools"]):
            self.model = widgets.add("model", make=gr.Dropdown, choices=[], allow_custom_value=True)
            self.refresh = widgets.add_tool("🔄", "models_refresh", "Read the model folders again")
        self.variant = widgets.add("variant", make=gr.Radio, choices=_variants(), visible=False)
        self.beside: Mapping[str, Any] = widgets.by_path


def wire(part: ModelPicker, enabled: Any, events: EventBinder) -> None:
    beside = [part.beside[path] for path in ("companion.model", "text_side.personal")]
    outputs = [part.model, part.variant, *beside]

    def read(chosen: str | None, variant: str) -> Updates:
        listed = shared_session.known_models().listed(shared_session.base())
        names = _captions(listed)
        plain = (chosen or "").partition(MISFIT)[0]
        fitting = [facts.name for facts in listed if not facts.misfit(shared_session.base())]
        if not plain and len(fitting) == 1:
            plain = fitting[0]
        model = gr.update(choices=list(names.values()), value=names.get(plain, plain))
        personal = [facts.name for facts in listed if facts.personal]
        lists = zip(beside, (shared_session.session().library.companions(), personal), strict=True)
        files = {component: gr.update(choices=["", *names]) for component, names in lists}
        return {part.model: model, **files, **_update_choice(part, events, plain, variant, _explain_none(listed))}

    def first(on: bool, chosen: str | None, variant: str) -> Updates:
        """Takes nothing back that was said about a photo meanwhile."""
        updates = read(chosen, variant) if on else {}
        return {one: update for one, update in updates.items() if one is not events.line or update}

    def choose(chosen: str | None, variant: str) -> Updates:
        return _update_choice(part, events, (chosen or "").partition(MISFIT)[0], variant)

    events.on(part.refresh.click, read, [part.model, part.variant], outputs)
    events.on(enabled.change, first, [enabled, part.model, part.variant], outputs, keep_line=True)

    def checkpoint(title: str | None) -> Updates:
        return {events.line: status_html(_describe_size(title))}

    events.on(part.model.input, choose, [part.model, part.variant], [part.variant])
    HOST.on_checkpoint(lambda listed: events.on(listed.change, checkpoint, [listed], []))


def _captions(listed: list[ModelFacts]) -> dict[str, str]:
    """Caption by name; the reason stands behind the name of what does not fit."""
    base = shared_session.base()
    reasons = {facts.name: facts.misfit(base) for facts in listed}
    return {name: f"{name}{MISFIT}{reason}" if reason else name for name, reason in reasons.items()}


def _explain_none(listed: list[ModelFacts]) -> str:
    base = shared_session.base()
    if not listed:
        return "There is no adapter yet: put one into models/dp_adapter and press 🔄."
    if all(facts.misfit(base) for facts in listed):
        return "None of these models fits the loaded checkpoint; each says why."
    return ""


def _update_choice(part: ModelPicker, events: EventBinder, name: str, variant: str, note: str = "") -> Updates:
    """What is to be said about the chosen model and the checkpoint, and the question about the model."""
    hidden = gr.update(visible=False, value="auto", choices=_variants())
    made_for = _describe_size()
    if not name:
        return {part.variant: hidden, events.line: status_html([note, made_for], "warning" if note else "note")}
    try:
        facts = shared_session.known_models().facts(name)
    except DPAdapterError as error:
        return {part.variant: hidden, events.line: status_html(str(error), "error")}
    wrong = _explain_refusal(facts)
    if wrong:
        return {part.variant: hidden, events.line: status_html(wrong, "error")}
    if not facts.question:
        # An answer that was pasted or chosen before stays, the answer that is remembered needs no mention.
        kept = variant if variant in facts.variants else "auto"
        question = gr.update(visible=False, value=kept, choices=_variants())
        return {part.variant: question, events.line: status_html(made_for)}
    question = f"The content of {facts.name} cannot tell which kind it is. Choose it below; the answer is remembered."
    chosen = variant if variant in facts.question else None
    asked = gr.update(visible=True, choices=list(facts.question), value=chosen)
    return {
        part.variant: asked,
        events.line: status_html(made_for) if chosen else status_html([question, made_for], "warning"),
    }


def _describe_size(title: str | None = None) -> str:
    """What the chosen checkpoint was made for, where it is another size than what users expect of its family."""
    from dp_adapter.hosts.pipelines.single_file import made_for

    checkpoint = compat.chosen_checkpoint(title)
    size = "" if checkpoint is None else made_for(checkpoint)
    return f"The checkpoint {checkpoint.stem} was made for {size}." if checkpoint and size else ""


def _explain_refusal(facts: ModelFacts) -> str:
    if facts.problem:
        return f"{facts.name} cannot be used: {facts.problem}".rstrip(".") + "."
    reason = facts.misfit(shared_session.base())
    return (
        f"{facts.name} is {reason}, the loaded checkpoint is not. Choose another model or checkpoint." if reason else ""
    )


def _variants() -> list[str]:
    kind = field_at("variant").kind
    assert isinstance(kind, Choice)
    return list(kind.choices)
