"""The persons' photos as further rows of the UNet's call, and the self-attentions that look at them: for all hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from dp_adapter.core.injection import Injection
from dp_adapter.core.reference_attention import ReferenceSelfAttention
from dp_adapter.core.reference_photo import NoiseLevel
from dp_adapter.core.regions.region_cache import RegionCache
from dp_adapter.core.types import Row, Site, Step
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.bypass_check import Acting

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


class PhotoRows:
    """The photos of one ``with``. Set when the UNet is entered and read by the self-attentions below it.

    Args:
        level: how noisy the UNet's input is at a timestep; None where the host does not say.
        names: keywords of the first two arguments of the UNet's call, latents and timesteps.

    Raises:
        HostError: there are photos to look at, but no noise level.
    """

    def __init__(
        self, injection: Injection, cache: RegionCache, level: NoiseLevel | None, names: tuple[str, str]
    ) -> None:
        if injection.uses_photo and level is None:
            raise HostError(
                "The noise schedule of the model is not known, so no photo can be shown to it",
                "Set the photo attention to 0.",
            )
        self.uses_photo = injection.uses_photo
        self._attention = ReferenceSelfAttention(injection, cache)
        self._level = level
        self._names = names

    def acts(self, step: Step) -> bool:
        """Whether any photo is looked at in a call."""
        return self.uses_photo and bool(self._attention.acting(step))

    def added(self, step: Step, chunk: int = 1) -> Step:
        """The step with the photos' rows, as many as fill whole chunks.

        Raises:
            HostError: the call is about another size than the photo was encoded for.
        """
        numbers = self._attention.acting(step) if self.uses_photo else ()
        if not numbers:
            return step
        for number in numbers:
            size = self._attention.of(number).size
            if size != step.latent or step.tiles is not None:
                called, shown = (f"{8 * grid.width} x {8 * grid.height}" for grid in (step.latent, size))
                raise HostError(
                    f"The model was called for {called} pixels, but the photo is shown at {shown}",
                    "Another extension samples in tiles or at another size: switch it off, or the photo attention.",
                )
        return step.with_references(numbers + numbers[-1:] * (-len(numbers) % chunk))

    def extended(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], step: Step
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call's arguments with the photos' rows behind the others, whose text and the like are ``source``'s.

        Args:
            step: with these rows; the arguments have the others.
        """
        count, more = len(step.rows) - len(step.references), len(step.references)
        source = source_row(step.rows[:count])
        named = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        latents, timesteps = (named[name] for name in self._names)
        args = tuple(extended(value, count, source, more) for value in args)
        extra = {
            key: extended(value, count, None if key in _CONTROLS else source, more) for key, value in kwargs.items()
        }
        shown = torch.cat([latents, self._shown(step, latents, timesteps)])
        if args:
            return (shown, *args[1:]), extra
        return (), {**extra, self._names[0]: shown}

    def _shown(self, step: Step, latents: Tensor, timesteps: Tensor | float) -> Tensor:
        """The photos' latents at the call's noise level, [n, c, h, w]; latents: [R, c, h, w]."""
        assert self._level is not None
        level = self._level(timesteps)
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

    def listen(
        self, stack: ExitStack, site: Site, attn1: nn.Module, now: Callable[[], Step | None], acting: Acting
    ) -> None:
        """Puts the hooks on a site's self-attention until ``stack`` closes.

        Args:
            now: the step as this site sees it; None outside of a call.
            acting: is told where a photo is looked at.
        """
        if not self._attention.looks(site):
            return
        seen: dict[str, Tensor] = {}

        def capture(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
                step = now()
                if step is not None and step.references:
                    seen[name] = output

            return hook

        def exchange(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            step = now()
            q, k, v = (seen.pop(name, None) for name in "qkv")
            if step is None or not step.references:
                return None
            if q is None or k is None or v is None:
                raise HostError(
                    f"The self-attention at {site.name} does not compute queries, keys and values by its own layers",
                    "Unfuse its projections, or set the photo attention to 0.",
                )
            acting.acted = True
            return (self._attention.attend(site, step, q, k, v, args[0]), *args[1:])

        for name in "qkv":
            stack.callback(attn1.get_submodule(f"to_{name}").register_forward_hook(capture(name)).remove)
        stack.callback(attn1.get_submodule("to_out.0").register_forward_pre_hook(exchange).remove)


def source_row(rows: Sequence[Row]) -> int:
    """The row whose text the photos get: the first unconditional one, or else the first."""
    return next((number for number, row in enumerate(rows) if row.kind == "uncond"), 0)


def extended(values: Any, rows: int, source: int | None, more: int) -> Any:
    """Every tensor whose first side is the batch, with ``more`` rows like ``source`` behind; containers are walked.

    Args:
        source: number of a row; None for zeros.
    """
    if isinstance(values, Tensor):
        if not values.ndim or len(values) != rows:
            return values
        one = values[:1] * 0 if source is None else values[source : source + 1]
        return torch.cat([values, one.expand(more, *values.shape[1:])])
    if isinstance(values, dict):
        return {key: extended(value, rows, source, more) for key, value in cast(dict[str, Any], values).items()}
    if isinstance(values, tuple | list):
        walked = [extended(value, rows, source, more) for value in cast(Sequence[Any], values)]
        return tuple(walked) if isinstance(values, tuple) else walked
    return values
