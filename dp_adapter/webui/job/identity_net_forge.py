"""IdentityNet through the host's ControlNet: one control for each person, identity tokens in place of the text."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dp_adapter.errors import HostError
from dp_adapter.webui.host import controlnet, shared_session

if TYPE_CHECKING:
    from torch import Tensor

    from dp_adapter.core.types import Tokens
    from dp_adapter.session.assembly.identity_net import Net

_TEXT = "dp_adapter_text"  # beside our tokens: what they stand in place of


@contextmanager
def add_controls(p: Any, net: Net) -> Generator[None]:
    """Inside the ``with``, the job's UNet is one that asks IdentityNet; to be entered before the adapter attaches.

    Args:
        p: the WebUI's processing object.

    Raises:
        HostError: the file is no ControlNet that this WebUI can load.
    """
    import torch

    objects = p.sd_model.forge_objects
    before = unet = objects.unet
    loaded = shared_session.control_model(net.model)
    mine: dict[int, Tokens] = {}
    for person in net.persons:
        hint = torch.as_tensor(person.hint).permute(2, 0, 1)[None].float() / 255  # [1, 3, h, w]
        mask = None if person.mask is None else person.mask[:, None].float()  # [1, 1, h, w]
        unet = controlnet.with_control(unet, loaded, hint, net.weight, net.end, mask)
        mine[id(unet.controlnet_linked_list)] = person.tokens
    unet.add_controlnet_conditioning_modifier(token_modifier(mine))
    objects.unet = unet
    try:
        yield
    finally:
        objects.unet = before


def token_modifier(mine: dict[int, Tokens]) -> Any:
    """Exchanges the text of our controls. Each hands on what it was changed to, so that others get theirs back."""

    def modify(control: Any, x: Tensor, t: Tensor, cond: dict[str, Any], batched: int) -> Any:
        tokens = mine.get(id(control))
        text: Tensor = cond.get(_TEXT, cond["c_crossattn"])
        if tokens is None:
            return x, t, {**cond, "c_crossattn": text}, batched
        import torch

        marks: list[int] = control.transformer_options["cond_or_uncond"]
        if len(x) % len(marks):
            raise HostError(
                f"IdentityNet was called with {len(x)} rows of {len(marks)} kinds", "Switch IdentityNet off."
            )
        each = len(x) // len(marks)
        rows = [tokens.uncond if mark else tokens.cond for mark in marks for _ in range(each)]
        return x, t, {**cond, "c_crossattn": torch.stack(rows).to(text), _TEXT: text}, batched

    return modify
