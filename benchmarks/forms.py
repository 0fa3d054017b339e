"""What each form of the identity attention costs, at all sites of one UNet call, without the UNet.

    python -m benchmarks.forms [--base sd15|sdxl] [--size 512] [--rounds 3] [--dtype float32] [--device cpu]

Random hidden states at the real widths, a guidance batch of two rows. All figures are ratios to what the sites' own
output projections take for the same states in the same round (3.5 % of an SDXL step's arithmetic at 1024 px, 1.6 % of
an SD1.5 step's at 512 px); the median over the rounds, which take all forms in turn. MB are those of the factors that a
form keeps. "once" is what the first call adds, likewise: folding, and making the identity's keys and values.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.injection import FormUsed, Identity, Injection
from dp_adapter.core.pathways import Captured, SitePathways
from dp_adapter.core.projection import FaceProjection
from dp_adapter.core.regions.region_cache import RegionCache
from dp_adapter.core.regions.region_masks import box_mask
from dp_adapter.core.types import Grid, Row, Site, Step, Tokens
from dp_adapter.hosts.attach.sites import Base, site_names
from dp_adapter.session.assembly.attention_form import megabytes

FORMS: tuple[FormUsed, ...] = ("folded", "half", "plain")
FACE = (0.36, 0.12, 0.64, 0.50)  # a tenth of the picture
CONTEXT = {"sd15": 768, "sdxl": 2048}
WIDTHS = {"sd15": (320, 640, 1280, 1280), "sdxl": (320, 640, 1280)}  # by halvings
ROWS = (Row("uncond"), Row("cond"))


@dataclass(frozen=True)
class Layer:
    """One site with its own projections, and a call's tensors [2, N, C]."""

    site: Site
    to_q: nn.Linear
    to_out: nn.Linear
    hidden_states: Tensor
    q: Tensor


def layers_of(base: Base, latent: Grid, dtype: torch.dtype, device: str) -> list[Layer]:
    """The sites' layers; those of one width share their numbers, which costs nobody anything."""
    shared: dict[tuple[int, int], Layer] = {}
    layers: list[Layer] = []
    for name in site_names(base):
        width = WIDTHS[base][name.halvings]
        site = Site(name.index, name.diffusers, name.level, name.halvings, width, width // 64 if base == "sdxl" else 8)
        if (width, name.halvings) not in shared:
            to_q, to_out = (nn.Linear(width, width, bias=bias, dtype=dtype, device=device) for bias in (False, True))
            h = torch.randn(2, len(latent.halved(name.halvings)), width, dtype=dtype, device=device)
            shared[width, name.halvings] = Layer(site, to_q, to_out, h, to_q(h))
        one = shared[width, name.halvings]
        layers.append(Layer(site, one.to_q, one.to_out, one.hidden_states, one.q))
    return layers


def time_call(layers: Sequence[Layer], pathways: Sequence[SitePathways], step: Step, form: FormUsed) -> float:
    """Seconds that the identity takes at all sites."""
    spent = 0.0
    for layer, pathway in zip(layers, pathways, strict=True):
        if form == "plain":
            none = layer.q[:, :1]
            captured = Captured(layer.q, layer.q, none, none, none)
            spent += seconds(lambda p=pathway, c=captured: p.blended(step, c))
        else:
            out = layer.hidden_states.clone()
            q = layer.q if form == "half" else None
            spent += seconds(lambda p=pathway, h=layer.hidden_states, out=out, q=q: p.add_folded(step, h, out, q))
    return spent


def seconds(run: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--size", type=int, help="pixels; default 512, SDXL 1024")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4, 16, 257])
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    base: Base = args.base
    side = (args.size or (1024 if base == "sdxl" else 512)) // 8
    latent, dtype = Grid(side, side), getattr(torch, args.dtype)
    layers = layers_of(base, latent, dtype, args.device)
    sites = [SiteAdapter(CONTEXT[base], layer.site.channels).half() for layer in layers]
    adapter = Adapter(FaceProjection(8, 8, 4, CONTEXT[base]), sites).requires_grad_(False)
    step = Step(0.5, ROWS, latent)
    print(f"{'form':7} {'T':>4} {'region':14} {'of to_out':>9} {'once':>6} {'MB':>6}")
    for tokens in args.tokens:
        for mask in (box_mask(*FACE, Grid(256, 256))[None], None):
            both = Tokens(*torch.randn(2, tokens, CONTEXT[base]))
            measure(layers, Identity(adapter, both, 0.8, mask), step, args.rounds, dtype.itemsize)


def measure(layers: Sequence[Layer], identity: Identity, step: Step, rounds: int, itemsize: int) -> None:
    ratios: dict[FormUsed, list[float]] = {form: [] for form in FORMS}
    once: dict[FormUsed, list[float]] = {form: [] for form in FORMS}
    for _ in range(rounds):
        own = sum(seconds(lambda layer=layer: layer.to_out(layer.q)) for layer in layers)
        for form in FORMS:
            injection = Injection((identity,), form=form)
            cache = RegionCache(injection)
            cache.enter(step)
            pathways = [
                SitePathways(injection, layer.site, cache, layer.to_q, layer.to_out, layer.to_q) for layer in layers
            ]
            first, second = (time_call(layers, pathways, step, form) for _ in range(2))
            ratios[form].append(second / own)
            once[form].append((first - second) / own)
    region = "whole picture" if identity.mask is None else "face"
    for form in FORMS:
        mb = megabytes(form, [identity], itemsize)
        ratio, first = statistics.median(ratios[form]), statistics.median(once[form])
        print(f"{form:7} {len(identity.tokens.cond):4} {region:14} {ratio:9.3f} {first:6.2f} {mb:6.1f}", flush=True)


if __name__ == "__main__":
    main()
