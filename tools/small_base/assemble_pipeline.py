"""Writes a trained state of the small base as a diffusers folder, and the identity that was learned with it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dp_adapter.weights.families import own_adapter
from tools.small_base import train_vae
from tools.small_base.scene_pool import Pool
from tools.small_base.train_base import Joint
from tools.tiny_base import tiny_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--state", type=Path, nargs="+", required=True, help="state.pt of train_base.py; of several the mean"
    )
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--pool", type=Path, required=True, help="whose captions say which words were trained")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    stored = [torch.load(path, weights_only=True) for path in args.state]
    model = Joint()
    model.load_state_dict(average_states([one["ema"] for one in stored]))
    silence_unknown_words(model.text_encoder.get_input_embeddings().weight, Pool(args.pool).ids())
    net = train_vae.load(args.vae)
    pipeline = tiny_pipeline.assemble(model.unet, net, model.text_encoder)
    pipeline.save_pretrained(args.out)
    steps = {"steps": sum(one["step"] for one in stored), "with": "the small base"}
    own_adapter.save(args.out / "joint-adapter.safetensors", model.adapter, "sd15", "sface", steps)
    print(args.out, steps["steps"], "steps")


def average_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of weights of one run at several places of it ("model soups", arXiv 2203.05482)."""
    return {
        key: torch.stack([one[key].float() for one in states]).mean(0) if first.is_floating_point() else first
        for key, first in states[0].items()
    }


@torch.no_grad()
def silence_unknown_words(embeddings: Tensor, known: Tensor) -> None:
    """Gives words that no caption has the end token's embedding, which also fills up: they then say nothing.

    Untrained they are noise, and one of them spoils a picture: people write words that a small base never read.

    Args:
        embeddings: [49408, D]; known: token ids of captions, of any shape.
    """
    unknown = torch.ones(len(embeddings), dtype=torch.bool)
    unknown[known.long().flatten()] = False
    embeddings[unknown] = embeddings[-1].clone()


if __name__ == "__main__":
    main()
