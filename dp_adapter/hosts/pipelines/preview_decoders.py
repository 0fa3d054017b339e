"""The cheap decoders of a diffusers pipeline's latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dp_adapter.errors import SettingsError, WeightsError
from dp_adapter.hosts.attach.diffusers import base_of
from dp_adapter.hosts.pipelines.latent_preview import Pixels, linear, pictures, shrunk
from dp_adapter.pickles import unpickle

_FILES = {"sd15": "taesd_decoder.pth", "sdxl": "taesdxl_decoder.pth"}
FOLDER = "VAE-taesd"  # in a models folder, as the WebUIs keep it
_SMALL = 5_000_000  # parameters of a VAE that is itself as cheap as TAESD


def decoder(pipeline: Any, choice: str, roots: Sequence[Path]) -> Callable[[Tensor], list[Pixels]]:
    """What turns x0 [S, 4, h, w] into pictures, by ``tracking.decoder``.

    Args:
        roots: model folders, in which TAESD is looked for.

    Raises:
        SettingsError: TAESD is asked for, and its file is not here.
        WeightsError: its file is damaged.
    """
    base = base_of(pipeline.unet)
    found = next((path for root in roots if (path := root / FOLDER / _FILES[base]).is_file()), None)
    if choice == "taesd" and found is None:
        raise SettingsError(
            "tracking.decoder", f"'taesd' needs the file models/{FOLDER}/{_FILES[base]}", "Use 'auto'.", "auto"
        )
    small = sum(p.numel() for p in pipeline.vae.parameters()) < _SMALL
    if choice == "full" or (choice == "auto" and small):
        vae = pipeline.vae

        def full(latents: Tensor) -> Tensor:
            ready = shrunk(latents).to(vae.device, vae.dtype) / vae.config.scaling_factor
            return torch.cat([vae.decode(one[None]).sample for one in ready])

        return lambda latents: _decoded(full, latents)
    if found is not None and choice != "approx":
        tiny = load_taesd(found).to(pipeline.unet.device)

        def quick(latents: Tensor) -> Tensor:
            return tiny.decode(shrunk(latents).to(tiny.device).float()).sample

        return lambda latents: _decoded(quick, latents)
    return lambda latents: pictures(linear(latents, base))


def load_taesd(path: Path) -> Any:
    """madebyollin/taesd's decoder file as diffusers' ``AutoencoderTiny``, whose layers lack the leading clamp.

    Raises:
        WeightsError: another kind of file.
    """
    import diffusers

    tiny = cast(Any, diffusers).AutoencoderTiny()
    try:
        state = cast("dict[str, Tensor]", unpickle(path))
        split = [(*name.split(".", 1), value) for name, value in state.items()]
        tiny.decoder.load_state_dict({f"layers.{int(number) - 1}.{rest}": value for number, rest, value in split})
    except Exception as error:
        kind = type(error).__name__
        raise WeightsError(f"{path.name} is not TAESD's decoder ({kind})", "Get the file anew.") from error
    return tiny.eval()


@torch.no_grad()
def _decoded(decode: Callable[[Tensor], Tensor], latents: Tensor) -> list[Pixels]:
    return pictures(decode(latents))
