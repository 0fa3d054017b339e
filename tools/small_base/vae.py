"""The autoencoder of the small base: AutoencoderKL, 4 channels, 8x, narrow; and its training.

The loss is L1 and a gradient L1 of the picture, the distance of SFace's features of the faces, and a weak KL term. The
latents are whitened afterwards, inside ``quant_conv`` and ``post_quant_conv``, so that each channel has the standard
deviation 1 / 0.18215 that every host expects of SD1.5.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp_adapter.demo import tiny_vae
from dp_adapter.training.faces import SFace, embed_faces
from tools.small_base import portraits, scenes, vae_start
from tools.small_base.portraits import Portrait

CONFIG: dict[str, Any] = tiny_vae.CONFIG | {
    "block_out_channels": (64, 64, 128, 128),
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "sample_size": 128,
}

BATCH = 2


class Crops(torch.utils.data.IterableDataset[tuple[Tensor, Tensor, float]]):
    """Crops of scenes in -1..1, most around a face, with its landmarks [5, 2] and whether the face is inside."""

    def __init__(self, people: Sequence[Portrait], side: int, seed: int) -> None:
        self._people, self._side, self._seed = people, side, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        cv2.setNumThreads(1)
        random = np.random.default_rng((self._seed, int(torch.initial_seed() % 2**31)))
        side = self._side
        while True:
            scene = scenes.composed(random, scenes.planned(random, self._people), self._people)
            points = scene.points[int(random.integers(len(scene.points)))]
            middle = points.mean(0) + random.normal(0, 10 if side > 80 else 22, 2)
            x, y = (int(np.clip(v - side / 2, 0, scenes.SIDE - side)) for v in middle)
            crop = scene.picture[y : y + side, x : x + side].astype(np.float32) / 127.5 - 1
            local = points - np.array([x, y], np.float32)
            apart = float(np.linalg.norm(local[1] - local[0]))
            seen = bool((local.min() > 0.4 * apart) and (local.max() < side - 0.4 * apart) and apart > 15)
            yield torch.from_numpy(crop).permute(2, 0, 1), torch.from_numpy(local), float(seen)


def loss_of(vae: Any, sface: SFace, pictures: Tensor, points: Tensor, seen: Tensor, facing: float) -> dict[str, Tensor]:
    posterior = vae.encode(pictures).latent_dist
    latents = posterior.mean
    spread = latents.detach().std((0, 2, 3), keepdim=True)
    decoded = vae.decode(latents + 0.06 * spread * torch.randn_like(latents)).sample
    losses = {"l1": (decoded - pictures).abs().mean()}
    losses["edges"] = 0.5 * sum((decoded.diff(dim=axis) - pictures.diff(dim=axis)).abs().mean() for axis in (2, 3))
    losses["colour"] = (F.avg_pool2d(decoded, 8) - F.avg_pool2d(pictures, 8)).abs().mean()
    losses["size"] = 1e-4 * latents.square().mean()
    which = seen.bool()
    if facing and which.any():
        places = points[which].numpy()
        made, true = (embed_faces(sface, x[which], places) for x in (decoded, pictures))
        losses["face"] = facing * (1 - F.cosine_similarity(made, true.detach(), dim=-1)).mean()
    return losses


@torch.no_grad()
def whiten(vae: Any, pictures: Tensor) -> None:
    """Makes the latents' channels uncorrelated, of mean 0 and standard deviation 1 / scaling_factor."""
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in pictures.split(16)])
    flat = latents.permute(1, 0, 2, 3).flatten(1).double()
    mean = flat.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(flat))
    forward = (vectors / values.sqrt() / CONFIG["scaling_factor"]).T  # [4, 4]
    back = torch.linalg.inv(forward)
    quant, post = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight[:, :, 0, 0].double(), quant.bias.double()
    quant.weight[:4, :, 0, 0] = (forward @ weight[:4]).float()
    quant.bias[:4] = (forward @ (bias[:4] - mean)).float()
    quant.weight[4:], quant.bias[4:] = 0.0, -20.0  # a sampled latent is its mean
    weight = post.weight[:, :, 0, 0].double()
    post.bias += (weight @ mean).float()
    post.weight[:, :, 0, 0] = (weight @ back).float()


def new() -> Any:
    import diffusers

    vae = cast(Any, diffusers).AutoencoderKL(**CONFIG)
    vae_start.construct(vae)
    return vae.to(memory_format=torch.channels_last)


class _Rest(nn.Module):
    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:  # noqa: ARG002 - a resnet's signature
        return x


class Resting:
    """Leaves out the residual branches at the picture's full size, which add nothing yet and take half of the time."""

    def __init__(self, vae: Any) -> None:
        self._blocks = [
            (block, list(block.resnets)) for block in (vae.encoder.down_blocks[0], vae.decoder.up_blocks[3])
        ]
        for _, resnets in self._blocks:
            for resnet in resnets:
                nn.init.zeros_(resnet.conv2.weight)
                nn.init.zeros_(resnet.conv2.bias)
        self.rest()

    def rest(self) -> None:
        for block, resnets in self._blocks:
            for i in range(len(resnets)):
                block.resnets[i] = _Rest()

    def wake(self) -> None:
        for block, resnets in self._blocks:
            for i, resnet in enumerate(resnets):
                block.resnets[i] = resnet


def saved(vae: Any, resting: Resting | None, path: Path) -> None:
    if resting:
        resting.wake()
    torch.save(vae.state_dict(), path)
    if resting:
        resting.rest()


def train(people: Sequence[Portrait], args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    vae, sface = new(), SFace()
    trained: nn.Module = vae
    if args.start:
        vae.load_state_dict(torch.load(args.start, weights_only=True))
    resting = Resting(vae) if args.rest else None
    if args.decoder_only:
        vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)
        trained = vae.decoder
    optimiser = torch.optim.AdamW(
        [p for p in trained.parameters() if p.requires_grad], args.rate, (0.9, 0.99), weight_decay=1e-4
    )
    loader = torch.utils.data.DataLoader(Crops(people, args.crop, args.seed), BATCH, num_workers=1, prefetch_factor=4)
    started, means = time.monotonic(), {}
    for step, (pictures, points, seen) in zip(range(args.steps), loader, strict=False):
        place = step / args.steps
        rate = args.rate * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * place)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        facing = args.facing if place >= args.facing_from else 0.0
        losses = loss_of(vae, sface, pictures.contiguous(memory_format=torch.channels_last), points, seen, facing)
        optimiser.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        for name, loss in losses.items():
            means[name] = 0.95 * means.get(name, loss.item()) + 0.05 * loss.item()
        if step % 50 == 0:
            told = " ".join(f"{name} {value:.4f}" for name, value in means.items())
            print(f"{step} {told} {time.monotonic() - started:.0f} s", flush=True)
        if step % 100 == 99:
            saved(vae, resting, args.out)
    if not args.decoder_only:
        random = np.random.default_rng(5)
        some = [scenes.composed(random, scenes.planned(random, people), people).picture for _ in range(256)]
        whiten(vae, torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2).float() / 127.5 - 1)
    saved(vae, resting, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--facing", type=float, default=0.1, help="weight of the faces' features")
    parser.add_argument("--facing-from", type=float, default=0.5, help="share of the steps after which they count")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--rest", action="store_true", help="without branches at full size")
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(portraits.split(portraits.load(args.portraits))[0], args)


if __name__ == "__main__":
    main()
