"""What a diffusers pipeline predicts at every call of its UNet, whatever the sampler: told from the call itself.

A UNet gets latents scaled to ``a x0 + s noise`` with a^2 + s^2 = 1 from every scheduler, so its output and timestep
give x0 without knowing the scheduler's own steps. The conditional rows are taken: the mean of what may come, before
guidance exaggerates it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from dp_adapter.core.schedule import progress_of
from dp_adapter.hosts.attach.diffusers import pipeline_rows

_LATENT = 4  # channels; inpainting models get a mask and a picture behind them


@contextmanager
def report_predictions(
    running: Any, before: Callable[[], None], after: Callable[[Tensor, float], None]
) -> Generator[None]:
    """Inside the ``with``, ``before()`` is called ahead of each call of the UNet, ``after(x0, progress)`` behind it.

    To be entered before an injection is attached, so that it sees the rows as the sampler gave them. x0 is
    [S, 4, h, w].
    """
    scheduler = running.scheduler
    alphas: Tensor = scheduler.alphas_cumprod
    kind = str(scheduler.config.prediction_type)
    rows = pipeline_rows(running)
    called: list[tuple[Tensor, float]] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before()
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        called[:] = [(args[0] if args else kwargs["sample"], float(torch.as_tensor(timestep).flatten()[0]))]

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        noisy, timestep = called.pop()
        result = cast(Tensor, output[0] if isinstance(output, tuple) else output.sample)
        cond = [index for index, row in enumerate(rows(len(noisy))) if row.kind == "cond"]
        x0 = predicted(noisy[cond, :_LATENT].float(), result[cond].float(), timestep, alphas, kind)
        after(x0, progress_of(timestep, len(alphas)))

    handles = (
        running.unet.register_forward_pre_hook(enter, with_kwargs=True),
        running.unet.register_forward_hook(leave),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def predicted(noisy: Tensor, output: Tensor, timestep: float, alphas: Tensor, kind: str) -> Tensor:
    """x0 [S, c, h, w] of the UNet's input and output at a timestep, which may lie between two.

    Args:
        alphas: [t], the cumulative products of the noise schedule.
        kind: ``epsilon``, ``v_prediction`` or ``sample``.
    """
    low = min(max(int(timestep), 0), len(alphas) - 1)
    high = min(low + 1, len(alphas) - 1)
    alpha = torch.lerp(alphas[low].double(), alphas[high].double(), timestep - low)
    signal, noise = float(alpha.sqrt()), float((1 - alpha).sqrt())
    if kind == "sample":
        return output
    if kind == "v_prediction":
        return signal * noisy - noise * output
    return (noisy - noise * output) / signal
