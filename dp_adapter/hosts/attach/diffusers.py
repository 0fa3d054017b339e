"""Host diffusers: the names in a ``UNet2DConditionModel``, and what a call of it says about rows and progress."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from dp_adapter.core.injection import Injection
from dp_adapter.core.reference_photo import NoiseLevel, noise_level
from dp_adapter.core.schedule import progress_of
from dp_adapter.core.text.text_side import PersonWords
from dp_adapter.core.types import Grid, Row, Site, Step
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.attachment import Attachment, attached
from dp_adapter.hosts.attach.sites import Base, base_of_paths, site_names
from dp_adapter.hosts.attach.torch_compile import original_of
from dp_adapter.hosts.attach.torch_hooks import HookedUNet, StepOf
from dp_adapter.hosts.attach.word_maps import WordMaps
from dp_adapter.hosts.rows.added_rows import require_rows

Rows = Sequence[Row] | Callable[[int], Sequence[Row]]


def base_of(unet: nn.Module) -> Base:
    """Which base model a UNet is, by the layout of its cross-attention blocks.

    Raises:
        HostError: neither SD1.5 nor SDXL.
    """
    paths: list[str] = [path for path, _ in unet.named_modules()]  # pyright: ignore[reportUnknownVariableType]
    return base_of_paths(paths, lambda site: site.diffusers)


def sites_of(unet: nn.Module) -> list[Site]:
    """The sites of a UNet in checkpoint order, with the widths that it really has."""
    sites: list[Site] = []
    for name in site_names(base_of(unet)):
        attn2 = unet.get_submodule(name.diffusers + ".attn2")
        if getattr(attn2, "fused_projections", False):
            raise HostError("This UNet's attention projections are fused", "Call unet.unfuse_qkv_projections() first.")
        channels, heads = cast(int, attn2.query_dim), cast(int, attn2.heads)
        sites.append(Site(name.index, name.diffusers, name.level, name.halvings, channels, heads))
    return sites


def pipeline_rows(pipeline: Any) -> Callable[[int], list[Row]]:
    """Rows as diffusers' Stable Diffusion pipelines order them: with guidance the unconditional half comes first."""

    def rows(count: int) -> list[Row]:
        if not pipeline.do_classifier_free_guidance:
            return [Row("cond", i) for i in range(count)]
        half = count // 2
        return [Row("uncond", i) for i in range(half)] + [Row("cond", i) for i in range(half)]

    return rows


@contextmanager
def attach(
    unet: nn.Module,
    injection: Injection,
    rows: Rows,
    *,
    train_timesteps: int = 1000,
    maps: WordMaps | None = None,
    words: PersonWords | None = None,
    alphas_cumprod: Tensor | None = None,
) -> Generator[Attachment | None]:
    """Inside the ``with``, the UNet's cross-attentions carry the injection.

    Args:
        unet: a ``UNet2DConditionModel`` of SD1.5 or SDXL; also what ``torch.compile`` made of it, which then runs
            uncompiled.
        rows: what every batch element is, in the batch's order; or a function of the batch size that says it.
        train_timesteps: length of the noise schedule, which turns a timestep into progress.
        maps: sees the text attention meanwhile, also where the identity has no place yet.
        words: where the persons' words stand, for identities on the text side.
        alphas_cumprod: noise schedule of training, for identities with a photo.

    Yields:
        The attachment; None where the injection changes nothing.

    Raises:
        HostError: the UNet is of another kind, or the adapter's shapes do not fit it. At the end, or out of a call:
            the UNet was called past the layers in which the identity had to act.
    """

    def step_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        sample: Tensor = args[0] if args else kwargs["sample"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        announced = require_rows(rows(len(sample)) if callable(rows) else rows, len(sample))
        return Step(progress_of(timestep, train_timesteps), announced, Grid(*sample.shape[-2:]))

    def host_of(_: Attachment, visible: Injection) -> HookedUNet:
        level = None if alphas_cumprod is None else noise_level(alphas_cumprod)
        return _host_of(original_of(unet), visible, step_of, level)

    with attached(injection, host_of, maps, words) as attachment:
        yield attachment if injection.active else None


def _host_of(unet: nn.Module, injection: Injection, step_of: StepOf, level: NoiseLevel | None) -> HookedUNet:
    sites = sites_of(unet)
    paths, names = [site.name for site in sites], ("sample", "timestep")
    attentions = [unet.get_submodule(path + ".attn2") for path in paths]
    widths = [(cast(int, attn2.inner_dim), cast(int, attn2.cross_attention_dim)) for attn2 in attentions]
    keywords = ("hidden_states", "encoder_hidden_states")
    host = HookedUNet(injection, step_of, keywords, unet, sites, paths, widths, names, level)
    host.merges_lora = True
    return host
