"""Host ldm: the UNets of AUTOMATIC1111 (ldm for SD1.5, sgm for SDXL), their names, and what a call of them says."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from dp_adapter.core.injection import Injection
from dp_adapter.core.reference_photo import NoiseLevel, noise_level
from dp_adapter.core.schedule import progress_of
from dp_adapter.core.text.text_side import PersonWords
from dp_adapter.core.types import Grid, Row, Site, Step
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.adapter_fit import linear_shape
from dp_adapter.hosts.attach.attachment import Attachment, attached
from dp_adapter.hosts.attach.parts.res_adapter import ldm_layer_path
from dp_adapter.hosts.attach.sites import SUPPORTED, Base, base_of_paths, site_names
from dp_adapter.hosts.attach.torch_compile import original_of
from dp_adapter.hosts.attach.torch_hooks import HookedUNet, StepOf
from dp_adapter.hosts.attach.word_maps import WordMaps
from dp_adapter.hosts.rows import tiles
from dp_adapter.hosts.rows.a1111_rows import CfgRows, KnownRows
from dp_adapter.hosts.rows.added_rows import require_rows


def base_of(unet: nn.Module) -> Base:
    """Which base model a UNet in ldm naming is, by the layout of its cross-attention blocks.

    Raises:
        HostError: neither SD1.5 nor SDXL.
    """
    paths: list[str] = [path for path, _ in unet.named_modules()]  # pyright: ignore[reportUnknownVariableType]
    base = base_of_paths(paths, lambda site: site.ldm)
    # SD2 has the layout of SD1.5, but projects with linear layers where that has convolutions.
    if base == "sd15" and isinstance(unet.get_submodule("input_blocks.1.1.proj_in"), nn.Linear):
        raise HostError("This is a Stable Diffusion 2 model", SUPPORTED)
    return base


def sites_of(unet: nn.Module) -> list[Site]:
    """The sites of a UNet in checkpoint order, with the widths that it really has."""
    sites: list[Site] = []
    for name in site_names(base_of(unet)):
        attn2 = unet.get_submodule(name.ldm + ".attn2")
        channels, heads = linear_shape(attn2.get_submodule("to_q"))[1], cast(int, attn2.heads)
        sites.append(Site(name.index, name.diffusers, name.level, name.halvings, channels, heads))
    return sites


@contextmanager
def attach(
    unet: nn.Module,
    injection: Injection,
    rows: Sequence[Row] | CfgRows,
    *,
    train_timesteps: int = 1000,
    maps: WordMaps | None = None,
    words: PersonWords | None = None,
    alphas_cumprod: Tensor | None = None,
) -> Generator[Attachment | None]:
    """Inside the ``with``, the UNet's cross-attentions carry the injection.

    Args:
        unet: ``sd_model.model.diffusion_model``, an SD1.5 or SDXL ``UNetModel``.
        rows: what every batch element is, in the batch's order, or the object that the sampler's hook tells it to.
        train_timesteps: length of the noise schedule, which turns a timestep into progress.
        maps: sees the text attention meanwhile, also where the identity has no place yet.
        words: where the persons' words stand, for identities on the text side.
        alphas_cumprod: noise schedule of training, for identities with a photo.

    Yields:
        The attachment; None where the injection changes nothing.

    Raises:
        HostError: the UNet is of another kind, or the adapter's shapes do not fit it. Out of a call of the UNet: its
            rows cannot be told, or a region cannot be placed in it. At the end, or out of a call: the UNet was called
            past the layers in which the identity had to act.
    """
    regional = any(identity.is_regional for identity in injection.identities)

    def step_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step | None:
        named = dict(zip(("x", "timesteps", "context"), args, strict=False)) | kwargs
        latents: Tensor = named["x"]
        known = _known(rows, latents, named["context"], regional)
        if known is None:
            return None
        progress = progress_of(named["timesteps"], train_timesteps)
        return Step(progress, known.rows, Grid(*latents.shape[-2:]), known.tiles)

    def host_of(_: Attachment, visible: Injection) -> HookedUNet:
        level = None if alphas_cumprod is None else noise_level(alphas_cumprod)
        return _host_of(original_of(unet), visible, step_of, level)

    with attached(injection, host_of, maps, words) as attachment:
        yield attachment if injection.active else None


def _known(rows: Sequence[Row] | CfgRows, latents: Tensor, context: Tensor, regional: bool) -> KnownRows | None:
    if not isinstance(rows, CfgRows):
        return KnownRows(require_rows(rows, len(latents)), True)
    known = rows.of(latents, context, locate=regional)
    if regional and known and not known.whole and known.tiles is None:
        raise tiles.not_found()
    return known


def _host_of(unet: nn.Module, injection: Injection, step_of: StepOf, level: NoiseLevel | None) -> HookedUNet:
    paths = [name.ldm for name in site_names(base_of(unet))]
    widths = [linear_shape(unet.get_submodule(path + ".attn2.to_k")) for path in paths]
    names = ("x", "timesteps")
    # Its LoRA is not merged: the WebUI's own writes to the weights in the middle of a call, and keeps copies of them.
    host = HookedUNet(injection, step_of, ("x", "context"), unet, sites_of(unet), paths, widths, names, level)
    host.layer_path = ldm_layer_path(unet)
    return host
