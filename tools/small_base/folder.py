"""Writes a trained state of the small base as a diffusers folder, and the identity that was learned with it."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from dp_adapter.demo import tiny_base
from dp_adapter.weights import own
from tools.small_base import vae
from tools.small_base.base import Joint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="state.pt of base.py")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    stored = torch.load(args.state, weights_only=True)
    model = Joint()
    model.load_state_dict(stored["ema"])
    net = vae.new()
    net.load_state_dict(torch.load(args.vae, weights_only=True))
    pipeline = tiny_base.assembled(model.unet, net, model.text_encoder)
    pipeline.save_pretrained(args.out)
    steps = {"steps": stored["step"], "with": "the small base"}
    own.save(args.out / "joint-adapter.safetensors", model.adapter, "sd15", "sface", steps)
    print(args.out, stored["step"], "steps")


if __name__ == "__main__":
    main()
