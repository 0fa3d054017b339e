"""Writes an untrained SFace adapter that fits a checkpoint of any widths, for tests against a running WebUI.

python -m tests.real.make_adapter CHECKPOINT.safetensors MODELS/dp_adapter/test.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors import safe_open

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.projection import FaceProjection
from dp_adapter.hosts.attach.sites import site_names
from dp_adapter.hosts.pipelines.single_file import inspect_file
from dp_adapter.weights.families import own_adapter

FACE, TOKENS = 128, 4


def make(checkpoint: Path, out: Path, seed: int = 0) -> Path:
    """Random values of a size that is visible in a picture."""
    base = inspect_file(checkpoint).base
    with safe_open(str(checkpoint), framework="pt") as file:
        shapes = [
            file.get_slice(f"model.diffusion_model.{site.ldm}.attn2.to_k.weight").get_shape()
            for site in site_names(base)
        ]
    context = shapes[0][1]
    torch.manual_seed(seed)
    adapter = Adapter(FaceProjection(FACE, FACE, TOKENS, context), [SiteAdapter(context, inner) for inner, _ in shapes])
    with torch.no_grad():
        adapter.get_parameter("projection.proj.0.weight").mul_(FACE**0.5)
        for index in range(len(shapes)):
            site = adapter.site(index)
            assert isinstance(site, SiteAdapter)
            site.to_v.weight.mul_(4)
    out.parent.mkdir(parents=True, exist_ok=True)
    own_adapter.save(out, adapter, base, "sface", {"steps": 0, "note": "untrained"})
    return out


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
