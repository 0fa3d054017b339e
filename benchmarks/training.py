"""Training throughput of our loop against a plain one of diffusers, in ratios of the same run, and peak memory.

    python -m benchmarks.training [--base FOLDER] [--resolution 128] [--batch 4] [--steps 8] [--rounds 3] [--device cpu]

The plain loop is what IP-Adapter's ``tutorial_train_faceid.py`` does, on diffusers' own ``IPAdapterAttnProcessor2_0``:
the same UNet, data, optimiser and number of trained parameters, MSE, no masks, no running average. "ours, MSE" is
``dp-adapter train`` with that loss alone (but with regions and the running average); "ours, stage 1" with all losses of
stage 1. Each arm runs in a process of its own, in turn; times are medians of steps, ratios of the fastest rounds. The
first step is left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dp_adapter.identity.faces.face_parsing import FACE_SKIN
from dp_adapter.training.config import Config, from_tables
from dp_adapter.training.data.sample import Sample

PLAIN, MSE, STAGE = "plain diffusers loop", "ours, MSE", "ours, stage 1"


def data(folder: Path, side: int, count: int = 16) -> str:
    """A shard of noise with a face in the middle."""
    from webdataset.writer import TarWriter

    random = np.random.default_rng(0)
    labels = np.zeros((side, side), np.uint8)
    labels[side // 4 : side // 2, 3 * side // 8 : 5 * side // 8] = FACE_SKIN
    box = (0.375 * side, 0.25 * side, 0.625 * side, 0.5 * side)
    with TarWriter(str(folder / "000.tar")) as tar:
        for number in range(count):
            picture = random.integers(0, 255, (side, side, 3)).astype(np.uint8)
            embeddings = {"sface": random.normal(size=128).astype(np.float32)}
            points = np.array([[0.45, 0.3], [0.55, 0.3], [0.5, 0.37], [0.46, 0.44], [0.54, 0.44]], np.float32) * side
            sample = Sample(f"{number}", f"{number % 4}", "photo", picture, labels, box, points, embeddings)
            tar.write(sample.to_record(lossless=True))
    return str(folder / "*.tar")


def ours(config: Config) -> tuple[list[float], int]:
    from dp_adapter.training.parallel.devices import peak_memory
    from dp_adapter.training.train import train

    train(config)
    lines = (config.folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    device = torch.device("cuda" if torch.cuda.is_available() and config.device == "auto" else "cpu")
    return [float(json.loads(line)["pace"]) for line in lines][1:], peak_memory(device)


def plain(config: Config) -> tuple[list[float], int]:
    from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0

    from dp_adapter.core.projection import FaceProjection
    from dp_adapter.training import base_model
    from dp_adapter.training.data.batches import Examples, iterate_batches
    from dp_adapter.training.data.shards import Shards
    from dp_adapter.training.losses import noisy_latents
    from dp_adapter.training.parallel.devices import peak_memory, synchronise

    device = torch.device("cuda" if torch.cuda.is_available() and config.device == "auto" else "cpu")
    base = base_model.load(config, device)
    unet, stage, tokens = cast(Any, base.unet), config.stage[0], config.adapter.tokens
    processors: dict[str, Any] = {}
    for name in unet.attn_processors:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        if name.endswith("attn1.processor"):
            processors[name] = AttnProcessor2_0()
        else:
            processors[name] = IPAdapterAttnProcessor2_0(attention.query_dim, base.context, (tokens,)).to(device)
    unet.set_attn_processor(processors)
    projection = FaceProjection(128, 256, tokens, base.context).to(device)
    added = [one for one in processors.values() if isinstance(one, torch.nn.Module)]
    trained = [value for module in (projection, *added) for value in module.parameters()]
    optimizer: Any = torch.optim.AdamW(trained, lr=stage.lr, weight_decay=stage.weight_decay)
    examples = Examples(Shards(config.data.shards), config.data, config.adapter, (0, 0))
    moments = {i: base.encode_moments(examples[i]["pixels"][None]) for i in range(len(examples.shards))}
    seconds: list[float] = []
    source = iterate_batches(examples, stage.batch, 0, stage.steps, 0, 1, 0)
    for step in range(stage.steps):
        batch = next(source).to(device)  # pictures are read outside of the clock: ours has them in memory
        synchronise(device)
        started = time.perf_counter()
        known = torch.cat([moments[(step * stage.batch + i) % len(moments)] for i in range(stage.batch)])
        latents = base.sample_latents(known, torch.randn_like(known[:, 0]))
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(batch),), device=device)
        text = base.encode_texts(batch.captions, batch.size_and_crop, config.data.resolution)
        image = projection(batch.features)[:, None]  # [B, 1, T, D]: diffusers wants the number of pictures
        noisy = noisy_latents(latents, noise, base.alphas, timesteps)
        with torch.autocast(device.type, base_model.DTYPES[config.precision], enabled=config.precision != "no"):
            predicted = unet(noisy, timesteps, (text.context, [image]), added_cond_kwargs=text.added).sample
        torch.autograd.backward(torch.nn.functional.mse_loss(predicted.float(), noise))
        torch.nn.utils.clip_grad_norm_(trained, stage.clip)
        optimizer.step()
        optimizer.zero_grad()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return seconds[1:], peak_memory(device)


def arm(name: str, tables: dict[str, Any]) -> tuple[list[float], int]:
    if name == MSE:
        losses = {"localisation": 0.0, "text_off": 0.0, "face_gain": 0.0, "face_only": 0.0}
        tables = {**tables, "stage": [{**tables["stage"][0], "losses": losses}]}
    config = from_tables(tables)
    return plain(config) if name == PLAIN else ours(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="a diffusers folder; without it the demo's untrained one")
    for name, default in (("resolution", 128), ("batch", 4), ("steps", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu", choices=("cpu", "auto"))
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    args = parser.parse_args()
    times: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if args.base is None:
            from tools.tiny_base import tiny_pipeline

            args.base = tiny_pipeline.build(folder / "base")
        tables: dict[str, Any] = {
            "base": {"model": str(args.base)},
            "data": {
                "shards": [data(folder, args.resolution)],
                "resolution": args.resolution,
                "cache_latents": True,
            },
            "device": args.device,
            "precision": args.precision,
            "watch": {"every": 1, "checkpoint_every": 0, "samples_every": 0, "samples": 0},
            "stage": [{"kind": "iea", "steps": args.steps, "batch": args.batch}],
        }
        for turn in range(args.rounds):
            for number, name in enumerate((PLAIN, MSE, STAGE)):
                own = {**tables, "out": str(folder / f"out-{turn}-{number}")}
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    seconds, memory = pool.apply(arm, (name, own))
                times.setdefault(name, []).append(statistics.median(seconds))
                peaks[name] = max(memory, peaks.get(name, 0))
    print(f"{'':24}{'s a step':>10}{'ratio':>8}{'peak MiB':>10}")
    for name, rounds in times.items():
        print(f"{name:24}{min(rounds):10.3f}{min(rounds) / min(times[PLAIN]):8.2f}{peaks[name] / 2**20:10.0f}")


if __name__ == "__main__":
    main()
