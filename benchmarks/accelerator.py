"""Everything that a GPU is asked, in one run: steps, following a face, memory after jobs, a training's first steps.

    python -m benchmarks.accelerator [--device cuda] [--minutes 8]

On a CPU (``--device cpu``) the same with narrow models at small sizes, to try the script. Each part is a process of its
own; one that would begin after the time is left out, one that runs beyond it is stopped, and both are said.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch

STEP = ["benchmarks.unet_step", "--compile", "--tokens", "4"]
TRAINING = ["benchmarks.training", "--rounds", "1"]

ON_GPU = {
    "(a) a step of SD1.5, fp16, 512 px": [*STEP, "--device", "cuda", "--dtype", "float16"],
    "(a) a step of SDXL, fp16, 1024 px": [*STEP, "--base", "sdxl", "--device", "cuda", "--dtype", "float16"],
    "(b) following a face, fp16, 512 px": ["benchmarks.tracking", "--device", "cuda", "--dtype", "float16"],
    "(c) memory after jobs": ["benchmarks.jobs", "--device", "cuda"],
    "(d) 50 steps of training, bf16": [*TRAINING, "--device", "auto", "--precision", "bf16", "--steps", "50"],
    "(d) 50 steps of training, fp16": [*TRAINING, "--device", "auto", "--precision", "fp16", "--steps", "50"],
}
ON_CPU = {
    "(a) a step of a narrow SD1.5, 128 px": [*STEP, "--narrow", "--size", "128"],
    "(a) a step of a narrow SDXL, 128 px": [*STEP, "--narrow", "--base", "sdxl", "--size", "128"],
    "(b) following a face, 256 px": ["benchmarks.tracking", "--narrow", "--size", "256", "--repeats", "1"],
    "(c) memory after jobs": ["benchmarks.jobs", "--device", "cpu", "--jobs", "50"],
    "(d) steps of training": [*TRAINING, "--steps", "4"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8.0)
    args = parser.parse_args()
    print(torch.__version__, torch.cuda.get_device_name() if args.device == "cuda" else "CPU", flush=True)
    end = time.monotonic() + 60 * args.minutes
    failed = False
    for title, command in (ON_GPU if args.device == "cuda" else ON_CPU).items():
        started = time.monotonic()
        print(f"\n{title}: python -m {' '.join(command)}", flush=True)
        if (left := end - started) < 5:
            print("left out: the time is over")
            continue
        try:
            part = subprocess.run([sys.executable, "-m", *command], timeout=left, check=False)  # noqa: S603 - ours
            failed |= part.returncode != 0
        except subprocess.TimeoutExpired:
            print("stopped: the time is over")
        print(f"({time.monotonic() - started:.0f} s)", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
