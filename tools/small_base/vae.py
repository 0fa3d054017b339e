"""The autoencoder of the small base: AutoencoderKL, 4 channels, 8x, narrow; and its training.

The loss is L1 and a gradient L1 of the picture, the distance of SFace's features of the faces, and a weak KL term. The
latents are whitened afterwards, inside ``quant_conv`` and ``post_quant_conv``, so that each channel has the standard
deviation 1 / 0.18215 that every host expects of SD1.5.

With ``--teacher`` another autoencoder's latents stay, so that a base trained on them goes on: the encoder learns to
make them, the decoder to read them. With ``--leash`` it may leave them where its pictures gain by that.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    "block_out_channels": (64, 64, 64, 128),
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "sample_size": 128,
}

WIDER = (64, 64, 128, 128)
"""Widths of the first autoencoder, which taught the one that is shipped."""

FACES = 3.0
"""By how much more a face's middle counts in the picture's loss."""

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


@dataclass(frozen=True)
class Teacher:
    """Whose latents stay; ``leash`` is the weight of leaving them, None where the decoder reads the teacher's."""

    net: Any
    leash: float | None = None


def loss_of(
    vae: Any,
    sface: SFace,
    pictures: Tensor,
    points: Tensor,
    seen: Tensor,
    facing: float,
    teacher: Teacher | None = None,
) -> dict[str, Tensor]:
    """The parts of the loss. pictures: [B, 3, S, S] in -1..1; points: [B, 5, 2]; seen: [B], if a face is inside."""
    with _half():
        latents = vae.encode(pictures).latent_dist.mean.float()
    losses: dict[str, Tensor] = {}
    if teacher is not None:
        with torch.no_grad(), _half():
            taught = teacher.net.encode(pictures).latent_dist.mean.float()
        apart = CONFIG["scaling_factor"] ** 2 * (latents - taught).square().mean()
        losses["followed"] = (0.2 if teacher.leash is None else teacher.leash) * apart
        latents = taught if teacher.leash is None else latents
    else:
        losses["size"] = 1e-4 * latents.square().mean()
    spread = latents.detach().std((0, 2, 3), keepdim=True)
    with _half():
        decoded = vae.decode(latents + 0.06 * spread * torch.randn_like(latents)).sample.float()
    weights = 1 + FACES * around(points, pictures.shape[-1])
    losses["l1"] = _weighted(decoded - pictures, weights)
    edges = [
        _weighted(decoded.diff(dim=axis) - pictures.diff(dim=axis), weights.narrow(axis, 1, weights.shape[axis] - 1))
        for axis in (2, 3)
    ]
    losses["edges"] = 0.5 * torch.stack(edges).sum()
    losses["colour"] = (F.avg_pool2d(decoded, 8) - F.avg_pool2d(pictures, 8)).abs().mean()
    which = seen.bool()
    if facing and which.any():
        places = points[which].numpy()
        made, true = (embed_faces(sface, x[which], places) for x in (decoded, pictures))
        losses["face"] = facing * (1 - F.cosine_similarity(made, true.detach(), dim=-1)).mean()
    return losses


def around(points: Tensor, side: int) -> Tensor:
    """[B, 1, S, S]: 1 in the middle of the five landmarks, falling off over the face."""
    middle, reach = points.mean(1), 1.2 * (points[:, 1] - points[:, 0]).norm(dim=-1)
    place = torch.arange(side) + 0.5
    x, y = ((place - middle[:, axis, None]).square() for axis in (0, 1))  # [B, S]
    return torch.exp(-(y[:, :, None] + x[:, None]) / (2 * reach.square().clamp(min=4.0)[:, None, None]))[:, None]


def _weighted(difference: Tensor, weights: Tensor) -> Tensor:
    return (difference.abs().mean(1, keepdim=True) * weights).sum() / weights.sum()


def _half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@torch.no_grad()
def whiten(vae: Any, pictures: Tensor) -> None:
    """Makes the latents' channels uncorrelated, of mean 0 and standard deviation 1 / scaling_factor."""
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in pictures.split(16)])
    flat = latents.permute(1, 0, 2, 3).flatten(1).double()
    mean = flat.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(flat))
    # of all that whiten, the one that moves them least
    forward = vectors @ (vectors / values.sqrt() / CONFIG["scaling_factor"]).T  # [4, 4]
    back = torch.linalg.inv(forward)
    quant, post = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight[:, :, 0, 0].double(), quant.bias.double()
    quant.weight[:4, :, 0, 0] = (forward @ weight[:4]).float()
    quant.bias[:4] = (forward @ (bias[:4] - mean)).float()
    quant.weight[4:], quant.bias[4:] = 0.0, -20.0  # a sampled latent is its mean
    weight = post.weight[:, :, 0, 0].double()
    post.bias += (weight @ mean).float()
    post.weight[:, :, 0, 0] = (weight @ back).float()


def new(widths: Sequence[int] = CONFIG["block_out_channels"]) -> Any:
    import diffusers

    vae = cast(Any, diffusers).AutoencoderKL(**CONFIG | {"block_out_channels": tuple(widths)})
    vae_start.construct(vae)
    return vae.to(memory_format=torch.channels_last)


def taught_by(path: Path, vae: Any, leash: float | None = None) -> Teacher:
    """The teacher of a file; what has the same shape in both is copied."""
    state = torch.load(path, weights_only=True)
    third = state["encoder.down_blocks.2.resnets.0.conv1.weight"].shape[0]
    teacher = new(WIDER if third == WIDER[2] else CONFIG["block_out_channels"]).requires_grad_(False).eval()
    teacher.load_state_dict(state)
    shapes = {key: value.shape for key, value in vae.state_dict().items()}
    vae.load_state_dict({k: v for k, v in state.items() if shapes.get(k) == v.shape}, strict=False)
    return Teacher(teacher, leash)


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
    teacher = taught_by(args.teacher, vae, args.leash) if args.teacher else None
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
    for step, (crops, points, seen) in zip(range(args.steps), loader, strict=False):
        place = step / args.steps
        rate = args.rate * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * place)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        facing = 2 * args.facing if place >= args.facing_from and step % 2 else 0.0  # it takes 40 % of a step
        pictures = crops.contiguous(memory_format=torch.channels_last)
        losses = loss_of(vae, sface, pictures, points, seen, facing, teacher)
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
    if not (args.decoder_only or (teacher and teacher.leash is None)):
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
    parser.add_argument("--teacher", type=Path, help="an autoencoder whose latents stay")
    parser.add_argument("--leash", type=float, help="weight of leaving the teacher's latents, which else stay")
    parser.add_argument("--rest", action="store_true", help="without branches at full size")
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(portraits.split(portraits.load(args.portraits))[0], args)


if __name__ == "__main__":
    main()
