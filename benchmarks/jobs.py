"""Whether memory returns: what is allocated after many jobs with the shipped small base and adapter.

    python -m benchmarks.jobs [--jobs 50] [--steps 2] [--device auto] [--dtype auto]

Jobs differ as a user's do: plain, with a face that is followed, with a drawn box, in several sizes, and every fifth is
stopped by an error in the middle. On CUDA torch's own count of allocated bytes is looked at, elsewhere what the process
has resident; that grows until the allocator has blocks of every size, in some twenty jobs, and must then stay.
"""

from __future__ import annotations

import argparse
import gc
import sys
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import NoReturn

import torch

from dp_adapter.demo.people import PORTRAITS
from dp_adapter.generation import generate
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, Pipeline
from dp_adapter.session import Session
from dp_adapter.settings import Settings

MODELS = Path(__file__).resolve().parents[1] / "models"
SIZES = (128, 192, 160)


class Stopped(Exception):
    """Ends a job in the middle, as a user's click does."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    args = parser.parse_args()
    pipeline = load_pipeline.load(MODELS / "demo" / "dp_small_base.safetensors", args.device, args.dtype)
    session = Session([MODELS], True)
    requests = _requests()
    for number, settings in enumerate(requests):
        _run(session, pipeline, settings, args.steps, number)
    print(f"MB on {pipeline.device} before: {_megabytes(pipeline.device):.1f}", flush=True)
    for number, settings in enumerate(islice(cycle(requests), args.jobs)):
        _run(session, pipeline, settings, args.steps, number)
        if (number + 1) % 10 == 0 or number + 1 == args.jobs:
            print(f"after {number + 1} jobs: {_megabytes(pipeline.device):.1f}", flush=True)


def _requests() -> list[Settings]:
    photo = str(sorted(PORTRAITS.glob("*.jpg"))[0])
    adapter = str(MODELS / "demo" / "dp_small_base_adapter.safetensors")
    with_photo = {"references": [{"image": photo}], "model": adapter}
    box = {"kind": "box", "box": {"x0": 0.3, "y0": 0.2, "x1": 0.7, "y1": 0.7}}
    return [Settings.from_dict(with_photo | more) for more in ({}, {"regions": [box]}, {"enabled": False})]


def _run(session: Session, pipeline: Pipeline, settings: Settings, steps: int, number: int) -> None:
    side = SIZES[number % len(SIZES)]
    job = DiffusersJob("color photo of a person", width=side, height=side, steps=steps, seed=number)

    def stop(*_: int) -> NoReturn:
        raise Stopped

    with suppress(Stopped):
        generate(session, pipeline, settings, job, stop if number % 5 == 4 else None)


def _megabytes(device: torch.device) -> float:
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6
    if sys.platform != "linux":
        return float("nan")
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
