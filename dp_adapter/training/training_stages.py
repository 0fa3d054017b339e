"""The adapter over a run: as it starts, the pathways that each stage adds, the weights it trains, and its file."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from dp_adapter.core.adapter import Adapter
from dp_adapter.errors import TrainingError
from dp_adapter.hosts.attach.sites import Base
from dp_adapter.training.config import AdapterConfig, Config, EncoderName, StageKind
from dp_adapter.training.initial_adapter import add_pathways, new_adapter, read_initial_adapter
from dp_adapter.weights.families import own_adapter
from dp_adapter.whole_files import write_whole


def make_first_adapter(config: Config, unet: nn.Module, family: Base, width: int) -> Adapter:
    """Makes the adapter of the first stage: that of ``adapter.start``, or a new one, the same for the same seed.

    Args:
        width: of the encoder's output.

    Raises:
        WeightsError, TrainingError: ``adapter.start`` cannot be read, or is for something else.
    """
    plan = config.adapter
    if plan.start:
        return _read_start(plan, family)
    with _fixed_seed(config.seed):
        return new_adapter(unet, plan.encoder, plan.mode, plan.tokens, width=width)


def _read_start(plan: AdapterConfig, family: Base) -> Adapter:
    start, name = read_initial_adapter(Path(plan.start)), Path(plan.start).name
    wanted = {"base": family, "encoder": plan.encoder, "mode": plan.mode}
    for what, value in wanted.items():
        if getattr(start, what) != value:
            problem = f"{name} has {what} '{getattr(start, what)}', this run '{value}'"
            raise TrainingError(problem, "Change the [adapter] table or base, or leave start out.")
    return start.adapter


def add_stage_pathways(adapter: Adapter, config: Config, number: int) -> Adapter:
    """Adds the pathways that a stage trains; new ones start without effect, the same for the same seed."""
    plan, kind = config.adapter, config.stage[number].kind
    with _fixed_seed(config.seed + 1 + number):
        return add_pathways(adapter, 0 if kind == "iea" else plan.tca_rank, kind == "ffb")


@contextmanager
def _fixed_seed(seed: int) -> Generator[None]:
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def part_of(name: str) -> StageKind:
    """Which part of the method a parameter belongs to, named by the stage that trains it first."""
    pieces = name.split(".")
    parts: dict[str, StageKind] = {"text": "tca", "blending": "ffb"}
    return parts.get(pieces[2], "iea") if pieces[0] == "sites" and len(pieces) > 2 else "iea"


def unfreeze(adapter: Adapter, kind: StageKind) -> dict[str, nn.Parameter]:
    """Lets gradients reach the parameters of a stage alone: its own part's, or all in the joint stage; by name."""
    adapter.requires_grad_(False)
    trained = {name: one for name, one in adapter.named_parameters() if kind in ("ffb", part_of(name))}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def save(path: Path, adapter: Adapter, base: Base, encoder: EncoderName, training: Mapping[str, object]) -> None:
    """Writes an adapter as the extension reads it; the file is there as a whole or not at all."""
    with write_whole(path) as beside:
        own_adapter.save(beside, adapter, base, encoder, training)
