"""Trains the gate of an adapter to see, in what the base predicts of noised scenes, where a face forms.

Scenes are noised to any timestep and the base predicts them once; these predictions are kept, and the gate, which is
small, is trained on them many times over. Its target is each cell's share of a face, so that where nothing is certain
yet it says how likely a face is.

    python -m tools.small_base.train_gate --pool pool --base models/demo/dp_small_base.safetensors \
        --adapter trained.safetensors --out adapter.safetensors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dp_adapter.core.adapter import SiteAdapter
from dp_adapter.core.latent_gate import LatentGate
from dp_adapter.core.schedule import progress_of
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.training.losses import clean_latents
from dp_adapter.weights import formats
from dp_adapter.weights.families import own_adapter
from tools.small_base.scene_pool import Pool, Scenes, tokenize

HELD_OUT = 200  # predictions that the gate is judged by
GUIDANCES = (1.0, 3.0)  # Forge's hosts hand out the guided prediction, all others the conditional one


@dataclass(frozen=True, eq=False)
class Predictions:
    """Latents x0 [n, 4, h, w] predicted at progress [n], and each cell's share of a face [n, 1, h, w]."""

    predicted: Tensor
    progress: Tensor
    faces: Tensor

    def rows(self, which: Tensor | slice) -> Predictions:
        return Predictions(self.predicted[which], self.progress[which], self.faces[which])

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Predictions:
        return cls(*(torch.cat([getattr(one, name) for one in parts]) for name in ("predicted", "progress", "faces")))


@torch.no_grad()
def predict_scenes(pipeline: Any, chunk: Scenes, times: int, batch: int = 25) -> list[Predictions]:
    """Every scene of a file, noised ``times`` times, with as many of its captions."""
    made: list[Predictions] = []
    nothing = pipeline.text_encoder(tokenize(pipeline.tokenizer, [""]).long()).last_hidden_state  # [1, 77, D]
    alphas: Tensor = pipeline.scheduler.alphas_cumprod
    for first in range(0, len(chunk.pictures), batch):
        here = slice(first, first + batch)
        pixels = chunk.pictures[here].permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        faces = chunk.faces[here].float().amax(1, keepdim=True)
        for number in range(times):
            text = pipeline.text_encoder(chunk.ids[here, number % chunk.ids.shape[1]].long()).last_hidden_state
            timesteps = torch.randint(0, 1000, (len(latents),))
            share = alphas[timesteps][:, None, None, None]
            noisy = share.sqrt() * latents + (1 - share).sqrt() * torch.randn_like(latents)
            both = torch.cat([nothing.expand_as(text), text])
            without, told = pipeline.unet(torch.cat([noisy, noisy]), timesteps.repeat(2), both).sample.chunk(2)
            guidance = torch.tensor(GUIDANCES)[torch.randint(len(GUIDANCES), (len(latents), 1, 1, 1))]
            noise = without + guidance * (told - without)
            progress = torch.tensor([progress_of(float(t), len(alphas)) for t in timesteps])
            made.append(Predictions(clean_latents(noisy, noise, alphas, timesteps), progress, faces))
    return made


def train(gate: LatentGate, data: Predictions, steps: int, batch: int = 64, rate: float = 2e-3) -> None:
    """By the cross entropy with each cell's share of a face."""
    optimizer = torch.optim.AdamW(gate.parameters(), rate, weight_decay=1e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        rows = data.rows(torch.randint(len(data.predicted), (batch,)))
        loss = F.binary_cross_entropy_with_logits(gate.logits(rows.predicted, rows.progress), rows.faces)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def describe(gate: LatentGate, data: Predictions) -> str:
    """How far the gate's faces are those of the scenes: soft intersection over union, by progress."""
    said, lines = gate.logits(data.predicted, data.progress).sigmoid(), list[str]()
    for low, high in ((0.0, 0.1), (0.1, 0.2), (0.2, 0.35), (0.35, 0.55), (0.55, 0.8), (0.8, 1.01)):
        rows = (data.progress >= low) & (data.progress < high)
        if rows.any():
            a, b = said[rows], data.faces[rows]
            overlap = torch.minimum(a, b).sum((1, 2, 3)) / torch.maximum(a, b).sum((1, 2, 3)).clamp(min=1e-6)
            lines.append(f"{low:.2f}-{high:.2f}: {float(overlap.mean()):.2f}")
    return ", ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True, help="one of our own")
    parser.add_argument("--out", type=Path, required=True, help="the adapter with its gate, without TCA and site gates")
    parser.add_argument("--guidance", type=float, help="identity guidance that it is to act with")
    parser.add_argument("--files", type=int, default=8, help="of the pool")
    parser.add_argument("--times", type=int, default=4, help="noised copies of a scene")
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    torch.manual_seed(0)
    checkpoint = formats.read(args.adapter)
    pipeline = load_pipeline.load(args.base, "cpu", "float32")
    made: list[Predictions] = []
    for chunk in Pool(args.pool).new(args.files):
        made += predict_scenes(pipeline, chunk, args.times)
        print(sum(len(one.predicted) for one in made), "predictions", flush=True)
    data = Predictions.join(made)
    gate = LatentGate()
    train(gate, data.rows(slice(HELD_OUT, None)), args.steps)
    print(f"overlap by progress: {describe(gate, data.rows(slice(HELD_OUT)))}")
    adapter = checkpoint.adapter
    for index in range(len(adapter.sites)):
        site = adapter.site(index)
        assert isinstance(site, SiteAdapter)
        site.text = site.blending = None
    adapter.gate = gate
    adapter.half()  # as the small base is shipped
    training = json.loads(checkpoint.metadata["training"]) | {
        "gate": {"steps": args.steps, "predictions": len(data.predicted)}
    }
    own_adapter.save(args.out, adapter, checkpoint.base, checkpoint.encoders[0], training, args.guidance)


if __name__ == "__main__":
    main()
