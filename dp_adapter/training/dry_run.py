"""Estimates a run's memory and time before it starts, with the real shapes on the meta device, which computes nothing.

Activations are what autograd really keeps: every tensor that ``torch.autograd.graph.saved_tensors_hooks`` is given in a
forward of the adapted UNet, each storage once, without parameters. Work is what ``FlopCounterMode`` counts in that
forward and its backward. One row is measured; both are proportional to the rows.

Not in it: what lives only inside one operation, the CUDA context, the allocator's gaps, and the face network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dp_adapter.core.adapter import Adapter
from dp_adapter.training import base_shapes
from dp_adapter.training.base_model import DTYPES, overflows
from dp_adapter.training.config import Config, TrainingStage
from dp_adapter.training.data.batches import LATENT
from dp_adapter.training.initial_adapter import WIDTHS, add_pathways, new_adapter
from dp_adapter.training.losses import EDIT_EVERY, IDENTITY_TIMESTEP
from dp_adapter.training.objective import choose_records
from dp_adapter.training.training_stages import make_first_adapter, unfreeze
from dp_adapter.training.unet.adapted_unet import AdaptedUNet, Conditions

_GIB = 2**30


@dataclass(frozen=True)
class ForwardPass:
    """One row through a model with gradients.

    Attributes:
        activations: bytes that autograd keeps.
        recomputed: the same with gradient checkpointing: the blocks' inputs and the largest block.
        forward, backward: floating-point operations.
    """

    activations: int
    recomputed: int
    forward: int
    backward: int


@dataclass(frozen=True)
class StageNeeds:
    """Bytes on one device and work of one stage.

    Attributes:
        trained: number of trained parameters.
        frozen: weights of UNet, VAE and text encoders; adapter: its weights and their running average.
        updating: gradients and AdamW's two moments.
        activations, checkpointed: without and with gradient checkpointing.
        flops, flops_checkpointed: of a step with all its passes; hours: of both, at the throughput of ``estimate``.
    """

    stage: TrainingStage
    trained: int
    frozen: int
    adapter: int
    updating: int
    activations: int
    checkpointed: int
    flops: int
    flops_checkpointed: int
    hours: tuple[float, float]

    def total(self, checkpointing: bool) -> int:
        own = self.checkpointed if checkpointing else self.activations
        return self.frozen + self.adapter + self.updating + own


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
        unet: number of the frozen UNet's parameters; throughput: operations a second.
        base: name of the model that has these sizes.
    """

    unet: int
    throughput: float
    stages: tuple[StageNeeds, ...]
    base: str

    def table(self) -> str:
        """For people: a Markdown table and what it leaves out."""
        head = ("stage", "batch", "trained", "frozen", "adapter, EMA", "gradients, AdamW", "activations", "total")
        head = (*head, "TFLOP a step", "hours")
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for one in self.stages:
            for again in (False, True):
                kept, flops = (one.checkpointed, one.flops_checkpointed) if again else (one.activations, one.flops)
                parts = (one.frozen, one.adapter, one.updating, kept, one.total(again))
                cells = [
                    one.stage.kind + (", checkpointing" if again else ""),
                    f"{one.stage.batch} x {one.stage.accumulate}",
                    f"{one.trained / 1e6:.1f} M",
                    *(f"{value / _GIB:.2f}" for value in parts),
                    f"{flops / 1e12:.2f}",
                    f"{one.hours[again]:.1f}",
                ]
                lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
        lines.append(
            f"Memory in GiB a device; hours at {self.throughput / 1e12:g} TFLOPS reached in practice, all steps on one "
            f"device. The UNet of {self.base} has {_in_millions(self.unet)} M parameters. Not in it: what lives inside "
            "one operation, the CUDA context, the allocator's gaps."
        )
        return "\n".join(lines)


def estimate(config: Config, throughput: float) -> Estimate:
    """Counts a run's memory and work; where the base model is not here, its family's own sizes count.

    Args:
        throughput: floating-point operations a second.
    """
    dtype = DTYPES[config.precision]
    models = base_shapes.build(config)
    for model in (models.unet, models.vae, *models.texts):
        nn.Module.to(model, dtype).requires_grad_(False).eval()  # torch's own move: diffusers' warns each time
    if overflows(models.vae):
        models.vae.float()  # as a copy of it decodes (``FrozenBase.decoded``)
    stages: list[StageNeeds] = []
    plan = config.adapter
    start = None
    if plan.start and Path(plan.start).is_file():
        start = make_first_adapter(config, models.unet, config.base.family, WIDTHS[plan.encoder]).to("meta")
    with torch.device("meta"), flash_attention(), _norms_in_float32(models):
        for stage in config.stage:
            stages.append(_estimate_stage(config, stage, models, copy.deepcopy(start), dtype, throughput))
    own = {"sd15": "Stable Diffusion 1.5", "sdxl": "SDXL"}[config.base.family]
    name = Path(config.base.model).name if models.here else f"{own} (there is no {config.base.model})"
    return Estimate(_count_parameters(models.unet), throughput, tuple(stages), name)


def _in_millions(number: int) -> str:
    return f"{number / 1e6:.0f}" if number >= 10e6 else f"{number / 1e6:.2f}"


def _estimate_stage(
    config: Config,
    stage: TrainingStage,
    models: base_shapes.BaseModels,
    start: Adapter | None,
    dtype: torch.dtype,
    throughput: float,
) -> StageNeeds:
    plan, losses = config.adapter, stage.losses
    adapter = start or new_adapter(models.unet, plan.encoder, plan.mode, plan.tokens)
    add_pathways(adapter, 0 if stage.kind == "iea" else plan.tca_rank, stage.kind == "ffb")
    parameters = _count_parameters(adapter)
    trained = sum(value.numel() for value in unfreeze(adapter, stage.kind).values())
    adapted = AdaptedUNet(models.unet, adapter.to(dtype), mode=plan.mode)
    cells = config.data.resolution // LATENT
    inputs = _make_inputs(models, plan.tokens, cells, dtype, config.base.family == "sdxl")
    one = measure_pass(lambda: adapted(**inputs, record=choose_records(losses)).noise, adapted)
    adapted.release()
    # Rows of the UNet with gradients, and further ones without: the base model's, another person's.
    edited = stage.edited_rows / EDIT_EVERY if losses.edit else 0.0
    with_gradients = stage.batch + 2 * edited
    without = stage.batch * (bool(losses.consistency) + bool(losses.swap)) + 2 * edited
    at_once = stage.batch + (2 * stage.edited_rows if losses.edit else 0)
    kept, recomputed = one.activations * at_once, one.recomputed * at_once
    forward = one.forward * (with_gradients + without)
    backward, again = one.backward * with_gradients, one.forward * with_gradients
    frozen = sum(_count_parameters(model) for model in (models.unet, models.vae, *models.texts)) * dtype.itemsize
    if losses.identity:
        vae = cast(Any, models.vae).dtype
        frozen += _count_parameters(models.vae) * vae.itemsize if vae != dtype else 0
        decoded = measure_pass(lambda: _decode_one(models.vae, cells), models.vae)
        rows = stage.batch * (IDENTITY_TIMESTEP + 1) / 1000
        kept, recomputed = (value + decoded.activations * math.ceil(rows) for value in (kept, recomputed))
        forward, backward = forward + rows * decoded.forward, backward + rows * decoded.backward
    flops = int((forward + backward) * stage.accumulate)
    flops_checkpointed = flops + int(again * stage.accumulate)
    seconds = (stage.steps * flops / throughput, stage.steps * flops_checkpointed / throughput)
    return StageNeeds(
        stage=stage,
        trained=trained,
        frozen=frozen,
        adapter=2 * 4 * parameters,
        updating=3 * 4 * trained,
        activations=kept,
        checkpointed=recomputed,
        flops=flops,
        flops_checkpointed=flops_checkpointed,
        hours=(seconds[0] / 3600, seconds[1] / 3600),
    )


def _make_inputs(
    models: base_shapes.BaseModels, tokens: int, cells: int, dtype: torch.dtype, xl: bool
) -> dict[str, Any]:
    """One row's arguments of ``AdaptedUNet``; the tokens take gradients, as those of a projection do."""
    identity = torch.empty(1, tokens, models.context, dtype=dtype, requires_grad=True)
    text = torch.empty(1, 77, models.context, dtype=dtype)
    added = {"text_embeds": torch.empty(1, models.pooled, dtype=dtype), "time_ids": torch.empty(1, 6, dtype=dtype)}
    return {
        "noisy": torch.empty(1, 4, cells, cells, dtype=dtype),
        "timesteps": torch.empty(1, dtype=torch.long),
        "conditions": Conditions(text, identity, torch.empty(1, 1, cells, cells)),
        "added_cond_kwargs": added if xl else None,
    }


def _decode_one(vae: Any, cells: int) -> Tensor:
    latents = torch.empty(1, 4, cells, cells, dtype=vae.dtype, requires_grad=True)
    return vae.decode(latents).sample


def measure_pass(run: Callable[[], Tensor], module: nn.Module) -> ForwardPass:
    """Measures one forward and backward of a module on the meta device."""
    parameters = {_storage_id(value) for value in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}
    blocks = [one for name, one in _named_modules(module) if _is_block(name)]
    inside: list[dict[int, int]] = []
    entered: dict[int, int] = {}
    largest = 0

    def pack(value: Tensor) -> Tensor:
        storage = _storage_id(value)
        if storage not in parameters and storage not in kept:
            kept[storage] = value.untyped_storage().nbytes()
            if inside:
                inside[-1][storage] = kept[storage]
        return value

    def enter(_module: nn.Module, args: tuple[Any, ...]) -> None:
        inside.append({})
        for value in args:
            if isinstance(value, Tensor):
                entered[_storage_id(value)] = value.untyped_storage().nbytes()

    def leave(_module: nn.Module, _args: object, _output: object) -> None:
        nonlocal largest, in_blocks
        size = sum(inside.pop().values())
        largest, in_blocks = max(largest, size), in_blocks + size

    in_blocks = 0
    with ExitStack() as stack:
        for block in blocks:
            for handle in (block.register_forward_pre_hook(enter), block.register_forward_hook(leave)):
                stack.callback(handle.remove)
        with (
            FlopCounterMode(display=False) as there,
            torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value),
        ):
            output = run()
    with FlopCounterMode(display=False) as back:
        torch.autograd.backward(output.float().sum())
    total = sum(kept.values())
    outside = total - in_blocks
    recomputed = outside + largest + sum(entered.values()) if blocks else total
    return ForwardPass(total, recomputed, there.get_total_flops(), back.get_total_flops())


def _is_block(name: str) -> bool:
    """Whether diffusers checkpoints a module: resnets and transformer blocks of the UNet."""
    pieces = name.split(".")
    return name.startswith("unet.") and len(pieces) > 2 and pieces[-2] in ("resnets", "transformer_blocks")


def _named_modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(cast(Any, module).named_modules())


def _storage_id(value: Tensor) -> int:
    return cast(Any, value.untyped_storage())._cdata


def _count_parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


class _Flash(torch.autograd.Function):
    """Attention as a fused kernel does it: q, k, v, the output and one number a row are kept, and nothing of [N, M]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = (q @ k.mT) @ v  # for the count; nothing is computed
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _out, _lse = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        (grad,) = grads
        weights = q @ k.mT  # recomputed
        d_weights = grad @ v.mT
        return d_weights @ k, d_weights.mT @ q, weights.mT @ grad


@contextmanager
def flash_attention() -> Generator[None]:
    """Counts attention as a fused kernel does it: on the meta device torch writes it out, which no GPU does."""
    original = F.scaled_dot_product_attention

    def fused(q: Tensor, k: Tensor, v: Tensor, *_args: object, **_kwargs: object) -> Tensor:
        return cast(Any, _Flash).apply(q, k, v)

    F.scaled_dot_product_attention = cast(Any, fused)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


@contextmanager
def _norms_in_float32(models: base_shapes.BaseModels) -> Generator[None]:
    """Computes norms in float32 and keeps their inputs so, as autocast does, which the meta device does not have."""
    with ExitStack() as stack:
        for model in (models.unet, models.vae):
            dtype: torch.dtype = cast(Any, model).dtype
            for _, module in _named_modules(model):
                if dtype != torch.float32 and isinstance(module, nn.GroupNorm | nn.LayerNorm):
                    module.float()
                    before = module.register_forward_pre_hook(lambda _m, args: (args[0].float(), *args[1:]))
                    after = module.register_forward_hook(_cast_to(dtype))
                    stack.callback(before.remove)
                    stack.callback(after.remove)
        yield


def _cast_to(dtype: torch.dtype) -> Callable[[nn.Module, object, Tensor], Tensor]:
    return lambda _module, _args, output: output.to(dtype)
