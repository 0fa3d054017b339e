"""Trains the autoencoder's decoder to show faces of the latents that the base makes; the latents stay as they are.

An autoencoder trained with L1 is soft where latents leave something open, and a small base's latents leave more open in
faces than a picture's own do. Here scenes are noised in part and denoised by the base, so that for each such latent a
picture with the same landmarks is known, and in faces the decoder learns from

* discriminators on SFace's layers and on pixels, as in Projected GANs (arXiv 2111.01007): sharp as a photo's;
* SFace's vector: whose face it is; and the distance of its layers from the photo's: its parts in their places.

Outside faces the decoder stays what it was.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from dp_adapter.hosts.prompts.clip_tokenizer import clip_tokenizer
from dp_adapter.training.differentiable_faces import DifferentiableSFace, crop_decoded
from dp_adapter.training.losses import clean_latents
from tools.small_base import train_vae as autoencoder
from tools.small_base.scene_pool import REAL, Pool, SceneRows, Scenes, tokenize
from tools.small_base.train_base import Joint, alphas_cumprod, draw_noise, grow, update_average
from tools.small_base.training_progress import Progress

LAYERS = (56, 28, 14, 7)
"""Sides of SFace's feature maps, whose last layers are looked at."""

NOISED = (350, 760)
"""Timesteps to which scenes are noised: landmarks stay, and what a face looks like is the base's."""

STEPS, GUIDANCE = 8, 3.0  # with which the base brings them back
AT_ONCE = 24  # scenes that the base brings back together
ADVERSARIAL, IDENTITY, LAYERWISE = 0.1, 0.3, 0.5
TRUE = 1 / 8
"""Share of pictures' own latents, so that img2img and inpainting keep what they are given."""


def rows_of_large_faces(chunk: Scenes) -> dict[str, Tensor]:
    """Scenes whose first person SFace sees enough of."""
    seen = autoencoder.are_large(chunk.points[:, 0])
    rows = {"pictures": chunk.pictures, "ids": chunk.ids[:, 0]}
    rows |= {name: getattr(chunk, name)[:, 0] for name in ("faces", "points", "warps", "vectors", "references")}
    return {name: value[seen] for name, value in rows.items()}


@torch.no_grad()
def denoise(model: Joint, latents: Tensor, rows: dict[str, Tensor], nothing: Tensor) -> Tensor:
    """Latents [B, 4, 16, 16], noised to one random timestep of ``NOISED`` and brought back by DDIM.

    Args:
        nothing: [1, 77], the tokens of no caption.
    """
    device, count = latents.device, len(latents)
    bars = torch.cat([alphas_cumprod(), torch.ones(1)]).to(device)
    start = int(torch.randint(*NOISED, ()))
    noisy = bars[start].sqrt() * latents + (1 - bars[start]).sqrt() * draw_noise(latents)
    ids = torch.cat([nothing.expand(count, -1), rows["ids"]])
    gate = grow(rows["faces"][:, None].float()) if torch.rand(()) < 0.5 else torch.ones_like(latents[:, :1])
    gates, faces = torch.cat([torch.zeros_like(gate), gate]), rows["references"].repeat(2, 1)
    places = [int(place) for place in np.linspace(start, 1, STEPS + 1)[:-1]]
    for place, following in zip(places, [*places[1:], -1], strict=True):  # -1: the 1 at the end of bars
        timesteps = torch.full((count,), place, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            both = model(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), ids, faces, gates)
        without, told = both.float().chunk(2)
        noise = without + GUIDANCE * (told - without)
        clean = clean_latents(noisy, noise, bars, timesteps)
        noisy = bars[following].sqrt() * clean + (1 - bars[following]).sqrt() * noise
    return noisy


@torch.no_grad()
def make_bank(model: Joint, vae: Any, held: SceneRows, count: int) -> dict[str, Tensor]:
    """Rows of scenes with ``latents``, what the base makes of them (``made``), and that decoded (``before``)."""
    parts: list[dict[str, Tensor]] = []
    nothing = tokenize(clip_tokenizer(), [""]).to(next(vae.parameters()).device)
    for _ in range(0, count, AT_ONCE):
        rows = held.draw(AT_ONCE)
        rows["latents"] = autoencoder.encode(vae, rows["pictures"])
        rows["made"] = denoise(model, rows["latents"], rows, nothing)
        rows["before"] = autoencoder.decode(vae, rows["made"]).clamp(-1, 1)
        parts.append(rows)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def run_sface(sface: DifferentiableSFace, crops: Tensor) -> tuple[list[Tensor], Tensor]:
    """SFace's feature maps of the sides ``LAYERS``, and the vectors, of crops [B, 3, 112, 112] in 0..255."""
    found: dict[int, Tensor] = {}

    def seen(out: Tensor) -> None:
        if out.dim() == 4:
            found[out.shape[-1]] = out

    vectors = sface.net(crops, seen)
    return [found[side] for side in LAYERS], vectors


class Discriminators(nn.Module):
    """Logits of patches: one small head on each of SFace's layers, and one network on the crop's pixels.

    Attributes:
        scales: mean size of each layer's values.
    """

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.heads = nn.ModuleList([_chain((one.shape[1], 64, 64, 1), ((1, 1), (3, 1), (1, 1))) for one in seen])
        self.pixels = _chain((3, 32, 64, 128, 1), ((4, 2), (4, 2), (4, 2), (3, 1)))
        self.scales = [one.abs().mean() for one in seen]

    def forward(self, maps: list[Tensor], crops: Tensor) -> list[Tensor]:
        scaled = [one / scale for one, scale in zip(maps, self.scales, strict=True)]
        return [head(one) for head, one in zip(self.heads, scaled, strict=True)] + [self.pixels(crops / 128)]


def _chain(widths: tuple[int, ...], kernels: tuple[tuple[int, int], ...]) -> nn.Sequential:
    made: list[nn.Module] = []
    for before, after, (kernel, stride) in zip(widths, widths[1:], kernels, strict=False):
        made += [spectral_norm(nn.Conv2d(before, after, kernel, stride, (kernel - 1) // 2)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*made[:-1])


class Teacher:
    """The losses of one batch of the bank, and the discriminators' own learning."""

    def __init__(self, sface: DifferentiableSFace, pictures: Tensor, warps: Tensor) -> None:
        self._sface = sface
        with torch.no_grad():
            seen, _ = run_sface(sface, crop_decoded(autoencoder.to_tensor(pictures), warps, DifferentiableSFace.size))
        self._judges = Discriminators(seen).to(pictures.device)
        self._optimiser = torch.optim.AdamW(self._judges.parameters(), 3e-4, (0.5, 0.99))

    def __call__(self, decoded: Tensor, before: Tensor, rows: dict[str, Tensor], trust: float) -> dict[str, Tensor]:
        """
        Args:
            before: what the decoder gave before; trust: weight of the discriminators, in 0..1.
        """
        photos = autoencoder.to_tensor(rows["pictures"])
        face = (1.6 * autoencoder.face_weights(rows["points"], photos.shape[-1])).clamp(0, 1)
        coarse = F.interpolate(F.avg_pool2d(decoded - before, 4), scale_factor=4, mode="bilinear")
        losses = {"kept": ((1 - face) * (decoded - before).abs() + face * coarse.abs()).mean()}
        warps = rows["warps"].clone()
        warps[:, :, 2] += 0.02 * torch.randn_like(warps[:, :, 2])
        made, true = (crop_decoded(one, warps, DifferentiableSFace.size) for one in (decoded, photos))
        if torch.rand(()) < 0.5:
            made, true = made.flip(-1), true.flip(-1)
        maps, vectors = run_sface(self._sface, made)
        with torch.no_grad():
            wanted, _ = run_sface(self._sface, true)
        losses["discriminators"] = self._learn(wanted, true, [one.detach() for one in maps], made.detach())
        said = torch.stack([one.mean() for one in self._judges(maps, made)])
        losses["adversarial"] = -ADVERSARIAL * trust * said.mean()
        losses["identity"] = IDENTITY * (1 - F.cosine_similarity(vectors, rows["vectors"], dim=-1)).mean()
        apart = [(a - b).abs().mean() / scale for a, b, scale in zip(maps, wanted, self._judges.scales, strict=True)]
        losses["layers"] = LAYERWISE * torch.stack(apart).mean()
        return losses

    def _learn(self, wanted: list[Tensor], true: Tensor, maps: list[Tensor], made: Tensor) -> Tensor:
        """A step of the discriminators with the hinge loss; returns it."""
        self._judges.requires_grad_(True)
        real, false = self._judges(wanted, true), self._judges(maps, made)
        loss = torch.stack(
            [F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in zip(real, false, strict=True)]
        ).sum()
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self._judges.requires_grad_(False)
        return loss.detach()


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    vae, sface = autoencoder.load(args.vae).requires_grad_(False).to(device), DifferentiableSFace().to(device)
    held = SceneRows(Pool(args.pool, 0, REAL), rows_of_large_faces, device)  # files of the portraits' own faces
    held.load_new()
    model = Joint().to(device)
    model.load_state_dict(torch.load(args.state, map_location=device, weights_only=True)["ema"])
    bank = make_bank(model.eval(), vae, held, args.count)
    print(f"{len(bank['made'])} latents made", flush=True)
    teacher = Teacher(sface, bank["pictures"][:16], bank["warps"][:16])
    decoder: nn.Module = vae.decoder.requires_grad_(True).train()
    ema = {key: value.clone() for key, value in decoder.state_dict().items()}
    optimiser = torch.optim.AdamW(decoder.parameters(), args.rate, (0.5, 0.99), weight_decay=0.0)
    started, place, now = time.monotonic(), 0.0, Progress(newest=0.03)
    while place < 1:
        for group in optimiser.param_groups:
            group["lr"] = args.rate * min(1, (now.step + 1) / 50) * min(1, 2 * (1 - place) + 0.02)
        which = torch.randint(0, len(bank["made"]), (args.batch,), device=device)
        rows = {name: value[which] for name, value in bank.items()}
        own = (torch.arange(args.batch, device=device) < TRUE * args.batch)[:, None, None, None]
        decoded = autoencoder.decode(vae, torch.where(own, rows["latents"], rows["made"]))
        before = torch.where(own, autoencoder.to_tensor(rows["pictures"]), rows["before"])
        losses = teacher(decoded, before, rows, min(1.0, max(0.0, (now.step - 60) / 100)))
        optimiser.zero_grad()
        torch.stack([loss for name, loss in losses.items() if name != "discriminators"]).sum().backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        update_average(ema, decoder, min(0.995, (1 + now.step) / (10 + now.step)))
        now.note(losses)
        now.spent = time.monotonic() - started
        if now.step % 50 == 1:
            print(now.describe(), flush=True)
        place = now.spent / (60 * args.minutes)
    decoder.load_state_dict(ema)
    torch.save(vae.eval().cpu().state_dict(), args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="of train_base.py")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--count", type=int, default=720, help="latents made by the base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
