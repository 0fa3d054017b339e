"""What following a face costs, as a share of a whole generation of the same run.

    python -m benchmarks.tracking [--size 512] [--steps 20] [--repeats 3] [--device cpu] [--dtype float32] [--narrow]

A real-size SD1.5 UNet with random weights and a guidance batch of two gives the price of a step; a look takes a real
portrait in a scene of that size through everything a look does. Two shares are printed. "all work" is CPU time of every
thread, wherever it runs. "the sampler's own" is what the sampler's thread spends itself, decoding and moving masks; the
rest runs beside the next call of the UNet. CPU time is taken, so that other programs on the machine do not count; on a
GPU the clock's time, waiting for what was queued. TAESD has random weights, which take as long as trained ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.unet_step import ROWS, build
from dp_adapter.core.regions.track import Track
from dp_adapter.core.types import Grid
from dp_adapter.hosts.pipelines.latent_preview import linear, pictures, shrunk
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.preview_faces import PreviewFinder
from dp_adapter.session.regions.face_mask import face_mask
from dp_adapter.session.regions.tracker import FoundRegion, Surroundings, TrackedPerson, Tracker, TrackingPlan
from dp_adapter.settings import Parts, Tracking
from dp_adapter.training.parallel.devices import synchronise

FACE = 0.35  # of the picture's height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--narrow", action="store_true", help="a small UNet, to try the script")
    given = parser.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    latents = torch.randn(1, 4, given.size // 8, given.size // 8, device=device, dtype=dtype)
    generation = given.steps * _step_seconds(latents, given.repeats, given.narrow)
    moments = len(Tracking().moments)
    portrait = _draw_scene(given.size)
    print(f"{given.steps} steps at {given.size} px: {generation:.1f} s, {moments} looks")
    print(f"{'decoder':10} {'decode':>9} {'look':>9} {'move':>9} {'all work':>9} {'own':>8}")
    for name, decode in _decoders(device, dtype).items():
        tracker = _tracker(given.size)
        shown = portrait if name == "taesd" else np.ascontiguousarray(portrait[::8, ::8])
        decoding = _seconds(lambda decode=decode: decode(latents), given.repeats, device)
        looking = _seconds(lambda tracker=tracker, shown=shown: tracker.look([shown], 0.3), given.repeats, device)
        look = tracker.look([shown], 0.3)
        moving = _seconds(lambda tracker=tracker, look=look: tracker.apply(look), given.repeats, device)
        everything = moments * (decoding + looking + moving) / generation
        own = moments * (decoding + moving) / generation
        print(
            f"{name:10} {decoding:8.3f}s {looking:8.3f}s {moving:8.3f}s {everything:8.2%} {own:7.2%}"
            f"{'' if look.regions[0] else '   (no face found)'}"
        )


def _step_seconds(latents: torch.Tensor, repeats: int, narrow: bool) -> float:
    unet, _ = build("sd15", latents.dtype, str(latents.device), narrow)
    context: int = cast(Any, unet).config.cross_attention_dim
    texts = latents.new_ones(len(ROWS), 77, context)

    @torch.no_grad()
    def step() -> None:
        unet(latents.expand(len(ROWS), -1, -1, -1), 500, encoder_hidden_states=texts)

    return _seconds(step, repeats, latents.device)


def _decoders(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[torch.Tensor], object]]:
    import diffusers

    taesd = cast(Any, diffusers).AutoencoderTiny().eval().to(device, dtype)

    @torch.no_grad()
    def full(latents: torch.Tensor) -> object:
        return pictures(taesd.decode(shrunk(latents)).sample)

    return {"taesd": full, "linear": lambda latents: pictures(linear(latents, "sd15"))}


def _tracker(size: int) -> Tracker:
    encoders = EncoderPool([])
    grid = Grid(min(size, 512), min(size, 512))
    start = torch.zeros(1, grid.height, grid.width)
    defaults, weights = Tracking(), Parts().weights()
    person = TrackedPerson(
        0,
        Track(start),
        start,
        False,
        lambda parts: FoundRegion(face_mask(parts, weights, defaults.grow, defaults.feather, grid)),
        lambda head: FoundRegion(head[None]),
    )
    finder = PreviewFinder(encoders.yunet, encoders.parser)
    return Tracker([person], TrackingPlan(defaults.moments), finder, Surroundings(grid))


def _draw_scene(size: int) -> NDArray[np.uint8]:
    """A portrait whose face has ``FACE`` of the height, on grey."""
    import cv2
    from skimage import data

    head = np.asarray(data.astronaut(), np.uint8)[:300, 80:380]
    side = round(FACE * size * 300 / 130)  # the face is some 130 px high there
    scene = np.full((size, size, 3), 110, np.uint8)
    small = cv2.resize(head, (side, side), interpolation=cv2.INTER_AREA)[:size, :size]
    top, left = (size - small.shape[0]) // 2, (size - small.shape[1]) // 2
    scene[top : top + small.shape[0], left : left + small.shape[1]] = small
    return scene


def _seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of the cheapest run, of the CPU or, on a GPU, of the clock; the first one loads."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    run()
    taken: list[float] = []
    for _ in range(repeats):
        synchronise(device)
        started = clock()
        run()
        synchronise(device)
        taken.append(clock() - started)
    return min(taken)


if __name__ == "__main__":
    main()
