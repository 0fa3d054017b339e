"""Previews by the host's own decoders, of those that are here: nothing is downloaded in the middle of a generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_adapter.errors import SettingsError
from dp_adapter.webui.host import compat

if TYPE_CHECKING:
    from torch import Tensor

    from dp_adapter.hosts.attach.sites import Base
    from dp_adapter.session.regions.preview_watch import Decode

# As modules.sd_samplers_common.approximation_indexes in all hosts, and the file that each takes by family.
_INDEX = {"full": 0, "approx": 1, "taesd": 3}
_FILES = {
    "approx": ("VAE-approx", {"sd15": "model.pt", "sdxl": "vaeapprox-sdxl.pt"}),
    "taesd": ("VAE-taesd", {"sd15": "taesd_decoder.pth", "sdxl": "taesdxl_decoder.pth"}),
}


def choose_decoder(choice: str, base: Base) -> Decode:
    """What turns latents into previews, by ``tracking.decoder``.

    Raises:
        SettingsError: TAESD is asked for, and its file is not here.
    """
    from dp_adapter.hosts.pipelines.latent_preview import linear, pictures, shrunk

    here = [name for name in _FILES if _is_here(name, base)]
    if choice == "taesd" and choice not in here:
        folder, files = _FILES[choice]
        raise SettingsError(
            "tracking.decoder",
            f"'taesd' needs the file {files[base]} in models/{folder}",
            "Use 'auto', or let the WebUI fetch it: Settings > Live previews > Live preview method > TAESD.",
            "auto",
        )
    wanted = choice if choice != "auto" else next((name for name in ("taesd", "approx") if name in here), "")
    if wanted == "full" or wanted in here:
        decode = _host_decoder(_INDEX[wanted])
        if wanted == "approx":  # small already: two pixels for each cell
            return lambda latents: pictures(decode(latents))
        return lambda latents: pictures(decode(shrunk(latents)))
    return lambda latents: pictures(linear(latents, base))


def _host_decoder(index: int) -> Callable[[Tensor], Tensor]:
    """The host's decoder, [S, 4, h, w] -> [S, 3, H, W] in -1..1, a picture at a time for the sake of memory."""
    import torch
    from modules import sd_samplers_common

    host: Any = sd_samplers_common

    def decode(latents: Tensor) -> Tensor:
        return torch.cat([host.samples_to_images_tensor(one[None], index).float() for one in latents])

    return decode


def _is_here(name: str, base: Base) -> bool:
    folder, files = _FILES[name]
    return any((root / folder / files[base]).is_file() for root in _roots())


def _roots() -> list[Path]:
    from modules import paths

    return [compat.models_folder(), Path(paths.script_path) / "models"]
