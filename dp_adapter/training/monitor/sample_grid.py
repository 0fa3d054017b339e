"""Sample grids of a training run, made as the extension makes pictures: hooks around a diffusers pipeline."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.injection import Identity, Injection
from dp_adapter.core.types import Tokens
from dp_adapter.hosts.attach import diffusers as host
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob
from dp_adapter.training.base_model import FrozenBase
from dp_adapter.training.config import Config
from dp_adapter.training.data.batches import Examples, crop_around_face, masks_of
from dp_adapter.training.data.shards import Shards

Picture = NDArray[np.uint8]

_GAP = 4


def draw_grid(base: FrozenBase, adapter: Adapter, shards: Shards, config: Config) -> Picture:
    """Rows of {reference, target, base model, with identity}; the same samples, prompts and seeds every time.

    Returns:
        [H, W, 3]
    """
    examples = Examples(shards, config.data, config.adapter, (config.seed, -1 % 2**32))
    people = sorted(shards.of_person)
    numbers = np.linspace(0, len(people) - 1, min(config.watch.samples, len(people))).round().astype(int)
    rows: list[Picture] = []
    for number in numbers:
        theirs = shards.of_person[people[int(number)]]
        target, reference = theirs[0], theirs[-1]
        rows.append(_draw_row(base, adapter, examples, config, target, reference))
    return np.concatenate(rows)


def _draw_row(
    base: FrozenBase, adapter: Adapter, examples: Examples, config: Config, target: int, reference: int
) -> Picture:
    side, watch = config.data.resolution, config.watch
    sample = examples.shards.sample(target)
    job = DiffusersJob(sample.caption, "", side, side, watch.sample_steps, watch.guidance, config.seed, sampler="ddim")
    tokens = project_tokens(adapter, examples.features(reference))
    identity = Identity(adapter, tokens, mask=masks_of(sample, config.data)[:1], mode=config.adapter.mode)
    (plain,) = load_pipeline.run(base.pipeline, job)
    (made,) = load_pipeline.run(base.pipeline, job, around=lambda running: _attach(running, identity))
    shown = [crop_around_face(one, side)[0] for one in (examples.shards.sample(reference), sample)]
    gap = np.full((side, _GAP, 3), 255, np.uint8)
    return np.concatenate([shown[0], gap, shown[1], gap, plain, gap, made], axis=1)


def _attach(running: Any, identity: Identity) -> Any:
    return host.attach(running.unet, Injection((identity,)), host.pipeline_rows(running))


@torch.no_grad()
def project_tokens(adapter: Adapter, features: Tensor) -> Tokens:
    """Tokens [T, D] of one reference; those of the unconditional row come from zeros, as dropped ones in training."""
    weight = next(adapter.projection.parameters())
    both = torch.stack([features, torch.zeros_like(features)]).to(weight)
    cond, uncond = cast(Tensor, adapter.projection(both))
    return Tokens(cond, uncond)
