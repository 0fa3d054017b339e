"""Trains the small base: text encoder, UNet and, with them, the attention to an identity, on the pool's scenes.

The identity is learned together with the rest, and dropped in a part of the scenes, so that the UNet without it is a
text-to-image model and an adapter needs few steps afterwards. Half of the time it acts in the person's face only, half
of the time everywhere, as plain decoupled attention does.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.attention import attend
from dp_adapter.core.projection import FaceProjection
from dp_adapter.hosts.attach.diffusers import sites_of
from dp_adapter.hosts.prompts.clip_tokenizer import clip_tokenizer
from dp_adapter.training.differentiable_faces import DifferentiableSFace, embed_crops
from dp_adapter.training.losses import clean_latents
from dp_adapter.whole_files import write_whole
from tools.small_base import train_vae as autoencoder
from tools.small_base.scene_pool import Pool, SceneRows, Scenes, tokenize
from tools.small_base.training_progress import Progress
from tools.tiny_base import tiny_pipeline, tiny_unet

UNET: dict[str, Any] = tiny_unet.CONFIG | {
    "sample_size": 16,
    "block_out_channels": (64, 128, 128, 128),
    "norm_num_groups": 32,
    "attention_head_dim": (2, 4, 4, 4),  # heads, of 32 channels each
}

TEXT: dict[str, Any] = tiny_pipeline.TEXT_CONFIG | {"intermediate_size": 256, "num_hidden_layers": 3}

FACE_DIM, TOKENS = 128, 4
DROP_TEXT, DROP_IDENTITY, EVERYWHERE = 0.1, 0.4, 0.5

JITTER = 0.07
"""Deviation of the noise on a face's vector, whose length is 1.

A thousand people are few: without it the attention learns them by heart. For linear regression from these vectors to
small aligned portraits the ridge that suits people kept out best is noise of 0.06 to 0.1.
"""


class Attention:
    """diffusers' attention processor, with an identity's term in the cross-attentions (see ``core.attention``)."""

    def __init__(self, joint: Joint | None, index: int = 0, halvings: int = 0) -> None:
        self._joint, self._index, self._halvings = joint, index, halvings

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = attn.to_q(hidden_states)
        out = attend(q, attn.to_k(context), attn.to_v(context), attn.heads)
        joint = self._joint
        if joint is not None and joint.tokens is not None:
            site = joint.adapter.site(self._index)
            assert isinstance(site, SiteAdapter)
            term = attend(q, site.to_k(joint.tokens), site.to_v(joint.tokens), attn.heads)
            out = out + joint.gates[self._halvings] * term
        return attn.to_out[0](out)


class Joint(nn.Module):
    """Text encoder, UNet and adapter in training."""

    def __init__(self) -> None:
        super().__init__()
        import diffusers
        from transformers import CLIPTextConfig, CLIPTextModel

        self.text_encoder: Any = CLIPTextModel(CLIPTextConfig(**TEXT))
        self.unet: Any = cast(Any, diffusers).UNet2DConditionModel(**UNET)
        context = UNET["cross_attention_dim"]
        sites = sites_of(self.unet)
        self.adapter = Adapter(
            FaceProjection(FACE_DIM, 2 * FACE_DIM, TOKENS, context),
            [SiteAdapter(context, site.channels) for site in sites],
        )
        with torch.no_grad():  # a face's vector has length 1
            self.adapter.get_parameter("projection.proj.0.weight").mul_(FACE_DIM**0.5)
        self.tokens: Tensor | None = None
        self.gates: dict[int, Tensor] = {}
        processors: dict[str, Attention] = {name: Attention(None) for name in self.unet.attn_processors}
        for site in sites:
            processors[f"{site.name}.attn2.processor"] = Attention(self, site.index, site.halvings)
        self.unet.set_attn_processor(processors)

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor, faces: Tensor | None, gate: Tensor) -> Tensor:
        """faces: [B, 128] or None; gate: [B, 1, 16, 16] where they act, 0 where dropped. Returns the noise."""
        text = self.text_encoder(ids).last_hidden_state
        self.tokens = None
        if faces is not None:
            self.tokens = self.adapter.projection(faces)
            self.gates = {n: F.avg_pool2d(gate, 2**n).flatten(2).transpose(1, 2) for n in range(4)}
        return self.unet(noisy, timesteps, text).sample


def alphas_cumprod() -> Tensor:
    import diffusers

    return cast(Any, diffusers).DDIMScheduler(**tiny_pipeline.SCHEDULER_CONFIG).alphas_cumprod


@dataclass(frozen=True, eq=False)
class Batch:
    """latents [B, 4, 16, 16], token ids [B, 77], references' SFace vectors [B, 128], gates and faces [B, 1, 16, 16].

    ``vectors`` [B, 128], ``warps`` [B, 2, 3] and ``large`` [B] are of the one person in the picture whom the reference
    shows; the last tells which faces are large enough for SFace, and are to follow the reference.
    """

    latents: Tensor
    ids: Tensor
    references: Tensor
    gates: Tensor
    faces: Tensor
    vectors: Tensor
    warps: Tensor
    large: Tensor


class Batches(SceneRows):
    """Random scenes with captions and reference faces, from what the pool has so far, with latents for pictures."""

    def __init__(self, pool: Pool, vae: Any, device: torch.device) -> None:
        super().__init__(pool, self._encode_pictures, device)
        self._vae = vae
        self._nothing = tokenize(clip_tokenizer(), [""])[0].to(device)

    def _encode_pictures(self, chunk: Scenes) -> dict[str, Tensor]:
        known = vars(chunk) | {"latents": autoencoder.encode(self._vae, chunk.pictures).half()}
        return {name: value for name, value in known.items() if name != "pictures"}

    def next(self, count: int) -> Batch:
        """The next random batch; the text is dropped in some, the identity in more."""
        device = self._device

        def chance(probability: float) -> Tensor:
            return torch.rand(count, device=device) < probability

        known, row = self.draw(count), torch.arange(count, device=device)
        two = known["vectors"][:, 1].any(-1)
        who = (two & chance(0.5)).long()
        caption = torch.randint(0, known["ids"].shape[1], (count,), device=device)
        faces = known["faces"].float()
        gates = grow(faces[row, who][:, None])
        gates = torch.where((chance(EVERYWHERE) & ~two)[:, None, None, None], torch.ones_like(gates), gates)
        kept = ~chance(DROP_IDENTITY)
        noise = JITTER * torch.randn(count, FACE_DIM, device=device)
        return Batch(
            known["latents"].float(),
            torch.where(chance(DROP_TEXT)[:, None], self._nothing, known["ids"][row, caption]),
            known["references"][row, who] + noise,
            kept[:, None, None, None] * gates,
            faces.sum(1, keepdim=True),
            known["vectors"][row, who],
            known["warps"][row, who],
            kept & autoencoder.are_large(known["points"][row, who]),
        )


def grow(mask: Tensor) -> Tensor:
    """[..., h, w]: a mask's cells and their neighbours, feathered."""
    return F.avg_pool2d(F.max_pool2d(mask, 3, 1, 1), 3, 1, 1).clamp(0, 1)


def train(args: argparse.Namespace) -> None:
    """Trains until the minutes are spent; goes on from ``state.pt`` where there is one.

    Under ``torchrun`` each process has batches of its own, and gradients are averaged.
    """
    torch.set_num_threads(args.threads)
    rank, ranks = join_processes()
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    model = Joint().to(device)
    model.unet.to(memory_format=torch.channels_last)
    if args.compile:
        model.unet.forward = torch.compile(model.unet.forward)
    trained: nn.Module = DistributedDataParallel(model) if ranks > 1 else model
    ema = {key: value.clone() for key, value in model.state_dict().items()}
    optimiser = torch.optim.AdamW(model.parameters(), args.rate, (0.9, 0.99), weight_decay=0.01, fused=True)
    now = resume(args.out / "state.pt", model, ema, optimiser)
    torch.manual_seed(args.seed + ranks * now.step + rank)
    vae = autoencoder.load(args.vae).requires_grad_(False).to(device)
    batches, objective = Batches(Pool(args.pool, rank, ranks), vae, device), Objective(vae, args)
    while not batches.load_new(8 * args.look):  # a start needs variety
        time.sleep(2)
    clock = saved = time.monotonic()
    budget = 60.0 * args.minutes
    while now.spent < budget:
        falling = min(1.0, (1 - now.spent / budget) / args.cooldown + 0.01)
        for group in optimiser.param_groups:
            group["lr"] = args.rate * min(1.0, (now.step + 1) / 200) * falling
        liking = now.spent >= args.likeness_from * budget and now.step % args.likeness_every == 0
        losses = objective(trained, batches.next(args.batch), liking)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        update_average(ema, model, min(args.ema, (1 + now.step) / (10 + now.step)))
        now.note(losses)
        before, clock = clock, time.monotonic()
        now.spent = broadcast_seconds(now.spent + clock - before)
        if now.step % 50 == 0:
            files = batches.load_new(args.look)
            if rank == 0:
                print(f"{now.describe()}, {files} files", flush=True)
        if rank == 0 and (clock - saved > 240 or now.spent >= budget):
            save(args.out / "state.pt", model, ema, optimiser, now)
            clock = saved = time.monotonic()


def join_processes() -> tuple[int, int]:
    """This process's number and how many train; each has a core of its own, as threads of one process wait often."""
    if "RANK" not in os.environ:
        return 0, 1
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= ranks:
        os.sched_setaffinity(0, set(cores[rank::ranks]))
    return rank, ranks


def broadcast_seconds(seconds: float) -> float:
    """The first process's seconds, so that all stop in the same step."""
    if not dist.is_initialized():
        return seconds
    shared = torch.tensor(seconds, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return shared.item()


class Objective:
    """Mean squared error of the noise times SNR^-1/2, so that steps in which much is open count; and more in faces.

    And, where the reference acts and little noise is left, the distance of SFace's vector of the face in the estimated
    picture from the true face's (as in `dp_adapter.training.losses`, identity).
    """

    def __init__(self, vae: Any, args: argparse.Namespace) -> None:
        self._vae, self._weight, self._below = vae, args.likeness, args.likeness_below
        self._faces, self._middle = args.faces, args.middle
        self._device = device = torch.device(args.device)
        self._sface = DifferentiableSFace().to(device)
        self._bars = alphas_cumprod().to(device)

    def __call__(self, model: nn.Module, batch: Batch, liking: bool) -> dict[str, Tensor]:
        timesteps = self._timesteps(len(batch.latents))
        bar = self._bars[timesteps][:, None, None, None]
        noise = draw_noise(batch.latents)
        noisy = (bar.sqrt() * batch.latents + (1 - bar).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, torch.bfloat16):
            made = model(noisy, timesteps, batch.ids, batch.references, batch.gates).float()
        weight = (bar / (1 - bar)).rsqrt().clamp(0.2, 8.0) * (1 + (self._faces - 1) * batch.faces)
        losses = {"noise": (weight * (made - noise).square()).mean()}
        if self._weight and liking:
            rows = (batch.large & (timesteps < self._below)).nonzero()[: max(1, len(noisy) // 8), 0]
            estimate = clean_latents(noisy[rows], made[rows], self._bars, timesteps[rows])
            losses["likeness"] = self._weight * self._distance(estimate, batch.warps[rows], batch.vectors[rows])
        return losses

    def _timesteps(self, count: int) -> Tensor:
        """Of any, a share around the middle, where it is decided what a face is (logit-normal, arXiv 2403.03206)."""
        place = torch.rand(count, device=self._device)
        around = torch.randn(count, device=self._device).sigmoid()
        return (1000 * torch.where(torch.rand_like(place) < self._middle, around, place)).long().clamp(0, 999)

    def _distance(self, latents: Tensor, warps: Tensor, vectors: Tensor) -> Tensor:
        if not len(latents):
            return latents.sum()
        found = embed_crops(self._sface, autoencoder.decode(self._vae, latents), warps)
        return 1 - F.cosine_similarity(found, vectors, dim=-1).mean()


def draw_noise(like: Tensor) -> Tensor:
    """White noise whose level moves with each channel and, less, with each quarter of a side.

    SD1.5's schedule leaves 0.5 % of a picture's variance at its noisiest step. Single cells are lost in it, but not the
    colour of a plain background, averaged over 256 cells. A model trained so reads it from its input and never from
    the text, and then samples colours of its own.
    """
    noise = torch.randn_like(like)
    level = torch.randn(len(like), like.shape[1], 1, 1, device=like.device)
    coarse = torch.randn(len(like), like.shape[1], 4, 4, device=like.device)
    quarters = F.interpolate(coarse, size=like.shape[2:], mode="bilinear")
    return noise + 0.4 * level + 0.2 * quarters


@torch.no_grad()
def update_average(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    pairs = [(ema[key], value) for key, value in model.state_dict().items() if value.is_floating_point()]
    get_ema_multi_avg_fn(decay)([pair[0] for pair in pairs], [pair[1] for pair in pairs], 0)


def resume(path: Path, model: nn.Module, ema: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> Progress:
    if not path.exists():
        return Progress()
    stored = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
    model.load_state_dict(stored["model"])
    optimiser.load_state_dict(stored["optimiser"])
    ema.update(stored["ema"])
    return Progress(stored["spent"], stored["step"])


def save(path: Path, model: nn.Module, ema: dict[str, Tensor], optimiser: torch.optim.Optimizer, now: Progress) -> None:
    states = {"model": model.state_dict(), "ema": ema, "optimiser": optimiser.state_dict()}
    with write_whole(path) as beside:
        torch.save(states | {"spent": now.spent, "step": now.step}, beside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--pool", type=Path, required=True, help="folder that scene_pool.py fills")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="of training in all; the learning rate falls at the end"
    )
    parser.add_argument("--cooldown", type=float, default=0.25, help="share of the time in which the rate falls")
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--faces", type=float, default=3.0, help="how often a face's cell counts")
    parser.add_argument("--middle", type=float, default=0.0, help="share of timesteps drawn around the middle")
    parser.add_argument("--likeness", type=float, default=0.1, help="weight of the distance of SFace's vectors")
    parser.add_argument("--likeness-from", type=float, default=0.3, help="share of the time after which it counts")
    parser.add_argument("--likeness-below", type=int, default=400, help="timesteps at which it is asked for")
    parser.add_argument("--likeness-every", type=int, default=2, help="steps")
    parser.add_argument("--look", type=int, default=1 << 30, help="new files to read at most every 50 steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="a quarter faster, after minutes of compiling")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
