"""The autoencoder of the small base: AutoencoderKL, 4 channels, 8x, narrow; and its training on the pool's pictures.

The loss is L1 and a gradient L1 of the picture, the distance of SFace's features of the faces, and a weak penalty on
the latents' size. The latents are whitened afterwards, inside ``quant_conv`` and ``post_quant_conv``, so that each
channel has the standard deviation 1 / 0.18215 that every host expects of SD1.5.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp_adapter.training.differentiable_faces import DifferentiableSFace, embed_crops
from tools.small_base import initial_vae
from tools.small_base.scene_pool import Pool, SceneRows, Scenes
from tools.small_base.training_progress import Progress
from tools.tiny_base import tiny_vae

CONFIG: dict[str, Any] = tiny_vae.CONFIG | {
    "block_out_channels": (64, 64, 64, 128),
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "sample_size": 128,
}

FACES = 3.0
"""By how much more a face's middle counts in the picture's loss."""

WHITENED = 256
"""Pictures by whose latents the latents are whitened."""

LEAST_APART = 10.0
"""Pixels between the eyes below which a face is too small for SFace."""


def loss_of(
    vae: Any, sface: DifferentiableSFace, pictures: Tensor, points: Tensor, warps: Tensor, facing: float
) -> dict[str, Tensor]:
    """The parts of the loss.

    Args:
        pictures: [B, 3, S, S] in -1..1; points: [B, 5, 2] of a face in each, in px; warps: [B, 2, 3] to SFace's crops.
        facing: weight of the faces' features; 0 saves their time.
    """
    device = pictures.device.type
    with torch.autocast(device, torch.bfloat16):
        latents = vae.encode(pictures).latent_dist.mean.float()
        spread = latents.detach().std((0, 2, 3), keepdim=True)
        decoded = vae.decode(latents + 0.06 * spread * torch.randn_like(latents)).sample.float()
    losses = {"size": 1e-4 * latents.square().mean()}
    weights = 1 + FACES * face_weights(points, pictures.shape[-1])
    losses["l1"] = _mean(decoded - pictures, weights)
    edges = [
        _mean(decoded.diff(dim=axis) - pictures.diff(dim=axis), weights.narrow(axis, 1, weights.shape[axis] - 1))
        for axis in (2, 3)
    ]
    losses["edges"] = 0.5 * torch.stack(edges).sum()
    losses["colour"] = (F.avg_pool2d(decoded, 8) - F.avg_pool2d(pictures, 8)).abs().mean()
    if facing:
        counted = are_large(points).float()
        with torch.no_grad():
            true = embed_crops(sface, pictures, warps)
        apart = 1 - F.cosine_similarity(embed_crops(sface, decoded, warps), true, dim=-1)
        losses["face"] = facing * (counted * apart).sum() / counted.sum().clamp(min=1)
    return losses


def are_large(points: Tensor) -> Tensor:
    """Whether SFace sees enough of the faces of these landmarks: [B, 5, 2] -> [B]."""
    return (points[:, 1] - points[:, 0]).norm(dim=-1) > LEAST_APART


def face_weights(points: Tensor, side: int) -> Tensor:
    """[B, 1, S, S]: 1 in the middle of the five landmarks, falling off over the face."""
    middle, reach = points.mean(1), 1.2 * (points[:, 1] - points[:, 0]).norm(dim=-1)
    place = torch.arange(side, device=points.device) + 0.5
    x, y = ((place - middle[:, axis, None]).square() for axis in (0, 1))  # [B, S]
    return torch.exp(-(y[:, :, None] + x[:, None]) / (2 * reach.square().clamp(min=4.0)[:, None, None]))[:, None]


def _mean(difference: Tensor, weights: Tensor) -> Tensor:
    return (difference.abs().mean(1, keepdim=True) * weights).sum() / weights.sum()


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


def build() -> Any:
    import diffusers

    vae = cast(Any, diffusers).AutoencoderKL(**CONFIG)
    initial_vae.construct(vae)
    return vae.to(memory_format=torch.channels_last)


def load(path: Path) -> Any:
    vae = build()
    vae.load_state_dict(torch.load(path, weights_only=True))
    return vae.eval()


def to_tensor(pictures: Tensor) -> Tensor:
    """[n, S, S, 3] in 0..255 -> [n, 3, S, S] in -1..1, channels last."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(vae: Any, pictures: Tensor, rows: int = 50) -> Tensor:
    """Latents [n, 4, s, s] of unit variance, of pictures [n, S, S, 3] in 0..255."""
    device = next(vae.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):  # half the time of a CPU; latents move by 1 % of their deviation
        latents = [vae.encode(to_tensor(part.to(device))).latent_dist.mean.float() for part in pictures.split(rows)]
    return torch.cat(latents) * CONFIG["scaling_factor"]


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pictures [n, 3, S, S] in about -1..1, of latents of unit variance; gradients pass."""
    with torch.autocast(latents.device.type, torch.bfloat16):
        return vae.decode(latents / CONFIG["scaling_factor"]).sample.float()


def rows_of_first_faces(chunk: Scenes) -> dict[str, Tensor]:
    """Of each scene the picture, and a face's landmarks and warp."""
    return {"pictures": chunk.pictures, "points": chunk.points[:, 0], "warps": chunk.warps[:, 0]}


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    vae, sface = (load(args.start) if args.start else build()).to(device).train(), DifferentiableSFace().to(device)
    optimiser = torch.optim.AdamW(vae.parameters(), args.rate, (0.9, 0.99), weight_decay=1e-4)
    held = SceneRows(Pool(args.pool), rows_of_first_faces, device)
    while not held.load_new():
        time.sleep(1)
    started, place, now = time.monotonic(), 0.0, Progress(newest=0.05)
    while place < 1:
        for group in optimiser.param_groups:
            group["lr"] = (
                args.rate * min(1, (now.step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * place)))
            )
        facing = 2 * args.facing if now.step % 2 else 0.0  # it takes 40 % of a step on a CPU
        rows = held.draw(args.batch)
        losses = loss_of(vae, sface, to_tensor(rows["pictures"]), rows["points"], rows["warps"], facing)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        now.note(losses)
        now.spent = time.monotonic() - started
        if now.step % 50 == 1:
            print(f"{now.describe()}, {held.load_new()} files", flush=True)
        place = now.spent / (60 * args.minutes)
    vae.eval()
    whiten(vae, to_tensor(held.draw(WHITENED)["pictures"]))
    torch.save(vae.cpu().state_dict(), args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True, help="folder that scene_pool.py fills")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--facing", type=float, default=0.3, help="weight of the faces' features")
    parser.add_argument("--start", type=Path, help="an autoencoder to go on from")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
