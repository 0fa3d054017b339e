"""The WebUI's processing objects → scenes: what each pass makes, from which picture, in which part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dp_adapter.hosts.attach.sites import Base
from dp_adapter.hosts.prompts.person_words import single_persons
from dp_adapter.webui.host import compat
from dp_adapter.webui.host.encoders import text_encoder

if TYPE_CHECKING:
    from PIL import Image

    from dp_adapter.core.types import Grid
    from dp_adapter.session import Crop, Scene
    from dp_adapter.session.scene import Picture

_CROP, _FILL = 1, 2  # resize modes of img2img: "Crop and resize", "Resize and fill"


def describe_first_pass(p: Any, base: Base, *, initialised: bool = True) -> Scene:
    """What the first or only pass makes.

    Args:
        p: the job; with ``initialised`` after its ``init``, which cuts "only masked" pictures.
    """
    import numpy as np

    from dp_adapter.session import Crop, Scene

    pictures: list[Image.Image] = list(getattr(p, "init_images", None) or []) if initialised else []
    if not pictures:
        return Scene(base, p.width, p.height, encode=text_encoder(p), words=_single_persons(p), progress=progress_of(p))
    cut: tuple[int, int, int, int] | None = getattr(p, "paste_to", None)
    mode: int = p.resize_mode
    inits = tuple(_fit_init(picture, cut, mode, p.width, p.height) for picture in pictures)
    keep = getattr(p, "nmask", None)  # [channels, h, w] or [1, channels, h, w]: 1 where it is painted anew
    inpaint = None if keep is None else np.asarray(keep.float().cpu().numpy(), np.float32).reshape(-1, *keep.shape[-2:])
    crop = Crop() if cut is None else _as_crop(cut, pictures[0].size)
    painted = None if inpaint is None else inpaint[0]
    return Scene(
        base, p.width, p.height, inits, painted, crop, text_encoder(p), _single_persons(p), progress=progress_of(p)
    )


def describe_hires_pass(p: Any, base: Base, latent: Grid) -> Scene:
    """What the hires pass makes, from latents of this size."""

    from dp_adapter.session import Scene

    height, width = 8 * latent.height, 8 * latent.width
    whole = (max(p.hr_upscale_to_x, width), max(p.hr_upscale_to_y, height))
    # The host cuts in latents: half of what is too much, rounded down, goes on the left and at the top.
    left, top = (8 * (int(getattr(p, name, 0)) // 2) for name in ("truncate_x", "truncate_y"))
    crop = _as_crop((left, top, width, height), whole)
    upscaled: Image.Image | None = getattr(p, "firstpass_image", None)  # the gallery's upscale button
    inits = () if upscaled is None else (_cut_out(upscaled, crop),)
    return Scene(base, width, height, inits, None, crop, text_encoder(p), _single_persons(p), progress=progress_of(p))


def progress_of(p: Any) -> tuple[float, ...]:
    """About how far the sampling is at each call of the denoiser: where timesteps lie is the sampler's own matter.

    As ``sd_samplers_common.setup_img2img_steps`` in all hosts; the hires pass makes all the steps that it is given.
    """
    hires = getattr(p, "is_hr_pass", False)
    steps: int = (getattr(p, "hr_second_pass_steps", 0) or p.steps) if hires else p.steps
    if not hires and not getattr(p, "init_images", None):
        return tuple(step / steps for step in range(steps))
    strength = 1.0 if p.denoising_strength is None else min(float(p.denoising_strength), 0.999)
    calls = steps if hires or compat.makes_all_steps() else int(strength * steps) + 1
    return tuple(1 - strength + strength * step / calls for step in range(calls))


def _single_persons(p: Any) -> tuple[str, ...]:
    """The words for single persons in the job's first prompt, of which the host has made all with their styles."""
    prompts: list[str] = getattr(p, "all_prompts", None) or [str(getattr(p, "prompt", ""))]
    return single_persons(prompts[0])


def _fit_init(
    picture: Image.Image, cut: tuple[int, int, int, int] | None, mode: int, width: int, height: int
) -> Picture:
    """An init picture as img2img makes it: "only masked" is cut out, the rest follows the resize mode.

    Not by the host's own function, which may run an upscaler first.
    """
    import numpy as np
    from PIL import Image, ImageOps

    flat = _flatten(picture)
    if cut is not None:
        x, y, w, h = cut
        flat, mode = flat.crop((x, y, x + w, y + h)), _FILL
    if mode == _CROP:
        flat = ImageOps.fit(flat, (width, height), Image.Resampling.LANCZOS)
    elif mode == _FILL:
        flat = ImageOps.pad(flat, (width, height), Image.Resampling.LANCZOS)
    else:
        flat = flat.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(flat)


def _flatten(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white, as in the host's settings."""
    from PIL import Image

    if picture.mode not in ("RGBA", "LA", "PA"):
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _cut_out(picture: Image.Image, crop: Crop) -> Picture:
    import numpy as np

    w, h = picture.size
    box = (round(crop.x0 * w), round(crop.y0 * h), round(crop.x1 * w), round(crop.y1 * h))
    return np.asarray(_flatten(picture).crop(box))


def _as_crop(cut: tuple[int, int, int, int], size: tuple[int, int]) -> Crop:
    """x, y, width, height in pixels of a picture of ``size`` (width, height)."""
    from dp_adapter.session import Crop

    x, y, w, h = cut
    return Crop(x / size[0], y / size[1], min((x + w) / size[0], 1.0), min((y + h) / size[1], 1.0))
