"""Personalising: an ID-EA identity (arXiv 2507.11990) trained from one photo or a few, the base model frozen.

One step: B noisy latents of varied cuts of the photos; y = text encoder(prompt with learned words at its input);
y' = ID-Adapter(y, ID-Enhancer(face)); eps = UNet(latents, t, y');

    L = MSE(eps, noise) + 8e-4 Mahalanobis(learned words, anchor) [+ 1.5e-4 L_emb + 0.05 L_attn (CoRe)]

Trained: the learned words, the enhancer, the adapter. Source of steps, batch and rates: README of Whslee/ID-EA@9481a95,
whose code leaves the enhancer as it was initialised and uses the words alone (``released``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dp_adapter.errors import HostError
from dp_adapter.training.personal.learned_words import compute_anchor
from dp_adapter.training.personal.personal_objective import LatentBank, PersonalObjective, PersonalOptions, draw_batch
from dp_adapter.weights.families.personal import Personal


@dataclass(eq=False)
class PersonalResult:
    """The modules as trained so far, with their losses; complete enough to be saved also after an interruption.

    Attributes:
        curve: per step the losses by name.
    """

    personal: Personal
    curve: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    seconds: float = 0.0
    interrupted: bool = False


OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after every step with the steps done, their total and the losses."""


def make_personal(pipeline: Any, faceid: Tensor, names: Sequence[str], options: PersonalOptions) -> Personal:
    """Makes one person's modules: the words at the anchor, gamma 0, all other weights drawn from the seed.

    Args:
        faceid: face embedding [e].
    """
    anchor = compute_anchor(pipeline, names, options.words).cpu()
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(options.seed)  # pyright: ignore[reportUnknownMemberType]
        personal = Personal(faceid.float(), anchor, learned=anchor)
    personal.enhancer.requires_grad_(not options.released)
    return personal.to(pipeline.unet.device)


def personalise(
    pipeline: Any, personal: Personal, bank: LatentBank, options: PersonalOptions, on_step: OnStep | None = None
) -> PersonalResult:
    """Trains one person's modules; Ctrl-C ends it early. The pipeline's weights do not change.

    Args:
        personal: from ``make_personal``; trained in place.

    Raises:
        HostError: the loss is no longer a number.
    """
    objective = PersonalObjective(pipeline, personal, options, int(bank.mean.shape[-1] * 8))
    if options.checkpointing:
        pipeline.unet.train().enable_gradient_checkpointing()  # diffusers checkpoints in training mode only
    optimiser = torch.optim.AdamW(_group_parameters(personal, options), weight_decay=options.weight_decay)
    scaler = _make_scaler(pipeline.unet)
    draws = torch.Generator().manual_seed(options.seed)
    result = PersonalResult(personal)
    started = time.perf_counter()
    try:
        for step in range(options.steps):
            terms = objective.losses(draw_batch(pipeline, bank, objective, options, draws))
            loss = torch.stack(list(terms.values())).sum()
            values = {name: float(value.detach()) for name, value in terms.items()}
            if not math.isfinite(sum(values.values())):
                raise HostError(
                    f"The loss at step {step + 1} is not a number", "Take lower rates, or dtype float32 or bfloat16."
                )
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            result.curve.append(values)
            if on_step:
                on_step(step + 1, options.steps, values)
    except KeyboardInterrupt:
        result.interrupted = True
    finally:
        if options.checkpointing:
            pipeline.unet.disable_gradient_checkpointing()
            pipeline.unet.eval()
        optimiser.zero_grad(set_to_none=True)
    result.seconds = time.perf_counter() - started
    if options.released:
        personal.adapter.get_buffer("beta").zero_()  # y' = y: the words alone
    return result


def _make_scaler(unet: Any) -> Any:
    """Keeps gradients that pass through a UNet in float16 from vanishing; torch before 2.3 has it for CUDA alone."""
    new = hasattr(torch.amp, "GradScaler")
    amp: Any = torch.amp if new else torch.cuda.amp
    kind: str = unet.device.type
    wanted = unet.dtype == torch.float16 and kind in (("cuda", "cpu") if new else ("cuda",))
    return amp.GradScaler(kind, enabled=wanted) if new else amp.GradScaler(enabled=wanted)


def _group_parameters(personal: Personal, options: PersonalOptions) -> list[dict[str, Any]]:
    """Parameters by learning rate: the words and gamma, which start at the anchor and 0, and the random networks."""
    first = [personal.adapter.gamma, personal.learned]
    networks = [one for one in personal.parameters() if one.requires_grad and all(one is not other for other in first)]
    rate = options.rate if options.released else options.network_rate
    return [{"params": first, "lr": options.rate}, {"params": networks, "lr": rate}]
