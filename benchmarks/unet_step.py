"""One UNet step with and without the adapter, in ratios to the unpatched model of the same run.

    python -m benchmarks.unet_step [--base sd15|sdxl] [--size 512] [--repeats 5] [--dtype float32] [--device cpu]
                                   [--forms folded half plain] [--tokens 4 16] [--compile] [--narrow]

A real-size UNet with random weights, a guidance batch of two rows. Every round runs all arms once, in turn. The table
gives two ratios to the unpatched step: of the fastest steps, and the median of what each round paired. "ours, weight 0"
does what the unpatched arm does: how far it is from 1 is the machine's noise. Where that is larger than the effect,
look at "within": the step's time over the same step's time less what was spent in the adapter's own code, taken inside
one and the same step, so that a slow moment of the machine is in both (CPU only). Folding happens once per generation,
in the first step, and is shown apart; "of 20" is its share of 20 unpatched steps. "word maps" looks at the attention of
two words, for a person who has no place yet, and reads the map after the step. "compiled" is ``torch.compile``'s code;
with an identity it rests, so that "ours, compiled model" is at best as fast as the plain arms. "--narrow" takes a
twentieth of the channels: for trying the script, not for figures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.injection import Form, Identity, Injection
from dp_adapter.core.pathways import SitePathways
from dp_adapter.core.projection import FaceProjection
from dp_adapter.core.regions.region_masks import box_mask
from dp_adapter.core.regions.track import Track
from dp_adapter.core.types import Grid, Row, Tokens
from dp_adapter.hosts.attach import diffusers as host
from dp_adapter.hosts.attach.sites import Base
from dp_adapter.hosts.attach.word_maps import WordMaps
from dp_adapter.training.base_shapes import UNETS
from dp_adapter.training.parallel.devices import synchronise

ROWS = [Row("uncond"), Row("cond")]
WORD_MAPS = "word maps, no place yet"
COMPILED = "ours, folded, face mask, compiled model"
FACE = (0.36, 0.12, 0.64, 0.50)  # a face of 38 % of the picture's height, a tenth of its area

# by base, what makes it some hundred times smaller
NARROW: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (32, 32, 64, 64), "attention_head_dim": 4, "cross_attention_dim": 64},
    "sdxl": {
        "block_out_channels": (32, 32, 64),
        "attention_head_dim": (2, 2, 4),
        "cross_attention_dim": 64,
    },
}


def build(base: Base, dtype: torch.dtype, device: str = "cpu", narrow: bool = False) -> tuple[nn.Module, nn.Module]:
    """The UNet, and a second one on the same weights that diffusers' own IP-Adapter can change."""
    from diffusers.models.unets import unet_2d_condition

    new = cast("Callable[..., nn.Module]", unet_2d_condition.UNet2DConditionModel)
    config = {**UNETS[base], **(NARROW[base] if narrow else {})}
    with torch.device(device):
        unet = new(**config).to(dtype).eval().requires_grad_(False)
    with torch.device("meta"):
        twin = new(**config)
    twin.load_state_dict(unet.state_dict(), assign=True)
    return unet, twin.eval().requires_grad_(False)


def random_adapter(unet: nn.Module) -> Adapter:
    context = unet.get_submodule(host.sites_of(unet)[0].name + ".attn2.to_k").get_parameter("weight").shape[1]
    sites = [SiteAdapter(context, site.channels) for site in host.sites_of(unet)]
    return Adapter(FaceProjection(512, 1024, 4, context), sites).requires_grad_(False)


def make_injection(adapter: Adapter, tokens: int, form: Form, mask: Tensor | None, weight: float = 0.8) -> Injection:
    context = adapter.site(0).context
    both = Tokens(torch.randn(tokens, context), torch.randn(tokens, context))
    return Injection((Identity(adapter, both, weight, mask),), form=form)


def without_region(injection: Injection) -> Injection:
    """The same with a region that is still to be found."""
    (identity,) = injection.identities
    return replace(injection, identities=(replace(identity, track=Track(torch.zeros(1, 64, 64))),))


def load_diffusers_adapter(unet: Any, adapter: Adapter) -> None:
    state = {
        f"{2 * i + 1}.to_{n}_ip.weight": getattr(site, f"to_{n}").weight
        for i, site in enumerate(adapter.sites)
        for n in "kv"
    }
    context = adapter.site(0).context
    proj = {"proj.weight": torch.randn(4 * context, 1024) * 0.02, "proj.bias": torch.zeros(4 * context)}
    norm = {"norm.weight": torch.ones(context), "norm.bias": torch.zeros(context)}
    unet._load_ip_adapter_weights([{"image_proj": proj | norm, "ip_adapter": state}])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--size", type=int, help="pixels; default 512, SDXL 1024")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--forms", nargs="+", choices=("folded", "half", "plain"), default=["folded", "half", "plain"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--arms", default="", help="only the arms whose name contains this")
    parser.add_argument("--compile", action="store_true", help="also the compiled model, bare and with an identity")
    parser.add_argument("--narrow", action="store_true", help="a small UNet, to try the script")
    args = parser.parse_args()

    dtype, device = getattr(torch, args.dtype), torch.device(args.device)
    size = args.size or (1024 if args.base == "sdxl" else 512)
    unet, twin = build(args.base, dtype, args.device, args.narrow)
    adapter = random_adapter(unet)
    load_diffusers_adapter(twin, adapter)
    twin.to(device, dtype)
    mask = box_mask(*FACE, Grid(size, size))[None]
    inputs = make_inputs(args.base, size, adapter.site(0).context, dtype, args.device)
    embeds = torch.randn(2, 1, 1024, device=device, dtype=dtype)

    def step(model: Any, small: bool = False, **more: Any) -> None:
        added = {**inputs["added"], **({"image_embeds": [embeds]} if model is twin else {})}
        sample = inputs["sample"][..., :8, :8] if small else inputs["sample"]
        with torch.no_grad():
            model(sample, 500, inputs["context"], added_cond_kwargs=added, **more)
        synchronise(device)

    injections = {
        f"ours, {form}, {region}, T = {tokens}": make_injection(adapter, tokens, form, where)
        for tokens in args.tokens
        for region, where in (("face mask", mask), ("whole picture", None))
        for form in args.forms
    }
    injections["ours, weight 0"] = make_injection(adapter, 4, "folded", mask, weight=0.0)
    injections[WORD_MAPS] = without_region(make_injection(adapter, 4, "folded", None))
    theirs = {"ip_adapter_masks": [mask[:, None].to(device, dtype)]}
    arms: dict[str, Callable[[], object]] = {
        "diffusers IP-Adapter, T = 4": lambda: step(twin),
        "diffusers IP-Adapter, face mask, T = 4": lambda: step(twin, cross_attention_kwargs=theirs),
    }
    if args.compile:
        compiled = cast(nn.Module, cast(Any, torch).compile(unet))
        step(compiled)  # compiles
        arms["unpatched, compiled"] = arms[COMPILED] = lambda: step(compiled)
        injections[COMPILED] = make_injection(adapter, 4, "folded", mask)
    wanted = {name: injection for name, injection in injections.items() if args.arms in name}
    other = {name: arm for name, arm in arms.items() if args.arms in name}
    measure(unet, wanted, other, step, args.repeats, Grid(size // 8, size // 8), within=device.type == "cpu")


def make_inputs(base: str, size: int, context: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    added = {"text_embeds": torch.randn(2, 1280, **options), "time_ids": torch.randn(2, 6, **options)}
    return {
        "sample": torch.randn(2, 4, size // 8, size // 8, **options),
        "context": torch.randn(2, 77, context, **options),
        "added": added if base == "sdxl" else {},
    }


@contextmanager
def stopwatch(spent: list[float]) -> Generator[None]:
    """Adds up the seconds inside the adapter's own code."""
    own = ((SitePathways, "add_folded"), (SitePathways, "blended"), (WordMaps, "_look"), (WordMaps, "latest"))
    originals = {(kind, name): getattr(kind, name) for kind, name in own}

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = work(*arguments)
            spent[0] += time.perf_counter() - started
            return result

        return run

    for (kind, name), work in originals.items():
        setattr(kind, name, timed(work))
    try:
        yield
    finally:
        for (kind, name), work in originals.items():
            setattr(kind, name, work)


def measure(
    unet: nn.Module,
    injections: dict[str, Injection],
    arms: dict[str, Callable[[], object]],
    step: Callable[..., None],
    repeats: int,
    latent: Grid,
    within: bool = True,
) -> None:
    """Runs all arms in turn and prints the table; `within` only where calls of kernels wait for their end."""
    names = list(dict.fromkeys(["unpatched", *injections, *arms]))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    folding: dict[str, list[float]] = {name: [] for name in injections}
    shares: dict[str, list[float]] = {name: [] for name in injections}
    step(unet)  # the first call allocates
    for round_number in range(repeats):
        # Turning the order round about takes away what a fixed place in it would give.
        for name in names if round_number % 2 == 0 else reversed(names):
            injection = injections.get(name)
            maps = WordMaps([[(2, 5)]], latent) if name == WORD_MAPS else None
            with nullcontext() if injection is None else host.attach(unet, injection, ROWS, maps=maps):
                run = arms.get(name, lambda maps=maps: (step(unet), maps and maps.latest()))
                if injection is not None:  # the first step folds, whatever its size
                    folding[name].append(_seconds(lambda: step(unet, small=True)))
                spent = [0.0]
                with stopwatch(spent):
                    seconds[name].append(_seconds(run))
                if name in shares:
                    shares[name].append(seconds[name][-1] / (seconds[name][-1] - spent[0]))
    base = seconds["unpatched"]
    print(f"{'arm':42} {'fastest':>10} {'ratio':>7} {'median':>7} {'within':>8} {'folding':>9} {'of 20':>7}")
    for name in names:
        ratio = statistics.median(mine / plain for mine, plain in zip(seconds[name], base, strict=True))
        best = min(seconds[name])
        own = ""
        if name in folding:
            small = min(folding["ours, weight 0"]) if "ours, weight 0" in folding else 0.0
            once = max(min(folding[name]) - small, 0.0)  # less the small step itself
            share = f"{statistics.median(shares[name]):8.4f}" if within else f"{'-':>8}"
            own = f"{share} {once:8.2f}s {once / (20 * min(base)):7.4f}"
        print(f"{name:42} {best:9.4f}s {best / min(base):7.3f} {ratio:7.3f} {own}")


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
