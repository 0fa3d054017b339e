"""The persons' photos as further rows of the UNet's call, and the self-attentions that look at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dp_adapter.core.injection import Injection
from dp_adapter.core.reference_attention import ReferenceSelfAttention
from dp_adapter.core.regions.region_cache import RegionCache
from dp_adapter.core.types import Row, Site, Step
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.bypass_check import BypassCheck
from dp_adapter.hosts.attach.host_unet import HostUNet, UNetCall
from dp_adapter.hosts.attach.parts.part import Part
from dp_adapter.hosts.rows.added_rows import append_rows

# What a ControlNet or T2I adapter adds is about the picture to be made, not about the photo.
_CONTROLS = frozenset(
    {
        "control",
        "down_block_additional_residuals",
        "mid_block_additional_residual",
        "down_intrablock_additional_residuals",
    }
)
_INPAINTING = 9  # channels: latents, mask, masked picture


class PhotoRows(Part):
    """The persons' photos, which the self-attentions of the pictures' rows look at.

    Raises:
        HostError: there are photos to look at, but no noise level.
    """

    def __init__(self, host: HostUNet, injection: Injection, cache: RegionCache, bypass: BypassCheck) -> None:
        if injection.uses_photo and host.noise_level is None:
            raise HostError(
                "The noise schedule of the model is not known, so no photo can be shown to it",
                "Set the photo attention to 0.",
            )
        self._host, self._bypass = host, bypass
        self._refers = injection.uses_photo
        self._attention = ReferenceSelfAttention(injection, cache)

    def register(self, stack: ExitStack) -> None:
        for site in self._host.sites:
            if self._attention.looks(site):
                self._register_site(stack, site)

    def acts(self, step: Step) -> bool:
        """Whether any photo is looked at in a call."""
        return self._refers and bool(self._attention.acting(step))

    def add_rows(self, call: UNetCall) -> UNetCall:
        """The call with the photos' rows, as many as fill whole chunks.

        Raises:
            HostError: the call is about another size than the photo was encoded for.
        """
        numbers = self._attention.acting(call.step) if self._refers else ()
        if not numbers:
            return call
        for number in numbers:
            size = self._attention.of(number).size
            if size != call.step.latent or call.step.tiles is not None:
                called, shown = (f"{8 * grid.width} x {8 * grid.height}" for grid in (call.step.latent, size))
                raise HostError(
                    f"The model was called for {called} pixels, but the photo is shown at {shown}",
                    "Another extension samples in tiles or at another size: switch it off, or the photo attention.",
                )
        numbers += numbers[-1:] * (-len(numbers) % self._host.rows_at_once(call))
        return self._host.describe_photos(self._with_arguments(call, call.step.with_references(numbers)))

    def leave(self, call: UNetCall, sample: Tensor) -> Tensor:
        return sample[: len(call.step.without_references().rows)]

    def _with_arguments(self, call: UNetCall, step: Step) -> UNetCall:
        """The call with the photos' rows, whose text and the like are ``source_row``'s.

        Args:
            step: with these rows; the call has the others.
        """
        count, more = len(call.step.rows), len(step.references)
        source, names = source_row(call.step.rows), self._host.argument_names
        latents, timesteps = ((dict(zip(names, call.args, strict=False)) | call.kwargs)[name] for name in names)
        args = tuple(append_rows(value, count, source, more) for value in call.args)
        kwargs = {
            key: append_rows(value, count, None if key in _CONTROLS else source, more)
            for key, value in call.kwargs.items()
        }
        shown = torch.cat([latents, self._show_photos(step, latents, timesteps)])
        if args:
            return replace(call, step=step, args=(shown, *args[1:]), kwargs=kwargs)
        return replace(call, step=step, kwargs={**kwargs, names[0]: shown})

    def _show_photos(self, step: Step, latents: Tensor, timesteps: Tensor | float) -> Tensor:
        """The photos' latents at the call's noise level, [n, c, h, w]; latents: [R, c, h, w]."""
        assert self._host.noise_level is not None
        level = self._host.noise_level(timesteps)
        rows: list[Tensor] = []
        for number in step.references:
            reference = self._attention.of(number)
            row = reference.add_noise(*level)
            further = latents.shape[1] - len(row)
            if latents.shape[1] == _INPAINTING:  # nothing is painted anew in the photo
                row = torch.cat([row, torch.zeros_like(row[:1]), reference.latents])
            elif further:
                row = torch.cat([row.to(latents), latents[0, -further:]])
            rows.append(row.to(latents))
        return torch.stack(rows)

    def _register_site(self, stack: ExitStack, site: Site) -> None:
        attn1, computed = self._host.attn1(site), dict[str, Tensor]()

        def capture(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
                if self._host.running is not None and self._host.running.step.references:
                    computed[name] = output

            return hook

        def exchange(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            call = self._host.running
            q, k, v = (computed.pop(name, None) for name in "qkv")
            if call is None or not call.step.references:
                return None
            if q is None or k is None or v is None:
                raise HostError(
                    f"The self-attention at {site.name} does not compute queries, keys and values by its own layers",
                    "Unfuse its projections, or set the photo attention to 0.",
                )
            self._bypass.acted = True
            step = self._host.step_at(site, call.step)
            return (self._attention.attend(site, step, q, k, v, args[0]), *args[1:])

        for name in "qkv":
            stack.callback(attn1.get_submodule(f"to_{name}").register_forward_hook(capture(name)).remove)
        stack.callback(attn1.get_submodule("to_out.0").register_forward_pre_hook(exchange).remove)


def source_row(rows: Sequence[Row]) -> int:
    """The row whose text the photos get: the first unconditional one, or one without identity, or else the first."""
    kinds = [row.kind for row in rows]
    return next((kinds.index(kind) for kind in ("uncond", "text") if kind in kinds), 0)
