"""IdentityNet through the host's ControlNet: one control for each person, identity tokens in place of the text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from dp_adapter.errors import HostError
from dp_adapter.webui.host import compat, shared_session

if TYPE_CHECKING:
    from torch import Tensor

    from dp_adapter.core.types import Step, Tokens
    from dp_adapter.session.assembly.identity_net import Net

_TEXT = "dp_adapter_text"  # beside our tokens: what they stand in place of


def control_of(p: Any, net: Net, call: Callable[[], Step | None]) -> AbstractContextManager[object]:
    """IdentityNet in the UNet of a job until it is closed; to be made before the adapter attaches.

    Args:
        p: the WebUI's processing object.
        call: the call of the UNet that runs, for A1111, whose ControlNet does not say what its rows are.

    Raises:
        HostError: the file is no ControlNet that this WebUI can load, or its ControlNet is another one than expected.
    """
    if compat.is_forge():
        return ForgeControl(p, net)
    from dp_adapter.webui.job.identity_net_a1111 import ExtensionControl

    return ExtensionControl(p, net, call)


class ForgeControl(AbstractContextManager["ForgeControl"]):
    """Inside the ``with``, the job's UNet is one that asks IdentityNet; to be entered before the adapter attaches.

    Args:
        p: the WebUI's processing object.

    Raises:
        HostError: the file is no ControlNet that this WebUI can load.
    """

    def __init__(self, p: Any, net: Net) -> None:
        import torch

        self._objects = p.sd_model.forge_objects
        self._before = unet = self._objects.unet
        loaded = shared_session.control_model(net.model)
        mine: dict[int, Tokens] = {}
        for person in net.persons:
            hint = torch.as_tensor(person.hint).permute(2, 0, 1)[None].float() / 255  # [1, 3, h, w]
            mask = None if person.mask is None else person.mask[:, None].float()  # [1, 1, h, w]
            unet = compat.with_control(unet, loaded, hint, net.weight, net.end, mask)
            mine[id(unet.controlnet_linked_list)] = person.tokens
        unet.add_controlnet_conditioning_modifier(token_modifier(mine))
        self._objects.unet = unet

    def __exit__(self, *_: object) -> None:
        self._objects.unet = self._before


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
