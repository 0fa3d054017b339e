"""Processing objects → scenes. The objects have what the hosts' code was read to set."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dp_adapter.core.types import Grid
from dp_adapter.session import Crop
from dp_adapter.webui.job import scenes


def job(**changes: Any) -> Any:
    own = {"width": 64, "height": 96, "resize_mode": 0, "paste_to": None, "nmask": None, "steps": 4}
    return SimpleNamespace(**(own | {"denoising_strength": 0.75} | changes))


@pytest.fixture(autouse=True)
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes.compat, "makes_all_steps", lambda: False)


def marked(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """Black with a white box."""
    picture = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = box
    picture[y0:y1, x0:x1] = 255
    return Image.fromarray(picture)


def test_txt2img_has_no_picture() -> None:
    scene = scenes.describe_first_pass(job(), "sd15")
    assert (scene.base, scene.width, scene.height, scene.inits, scene.inpaint) == ("sd15", 64, 96, (), None)
    assert scene.crop == Crop()


def test_before_the_jobs_preparation_nothing_is_cut() -> None:
    p = job(init_images=[marked(64, 96, (0, 0, 8, 8))])
    assert scenes.describe_first_pass(p, "sd15", initialised=False).inits == ()


@pytest.mark.parametrize(
    ("mode", "expected"),
    # A 200x100 picture, white from x = 100 to 120, made 64x96.
    [(0, (32, 38.4)), (1, (32, 51.2)), (2, (32, 38.4)), (3, (32, 38.4))],
)
def test_resize_modes(mode: int, expected: tuple[float, float]) -> None:
    p = job(init_images=[marked(200, 100, (100, 0, 120, 100))], resize_mode=mode)
    (init,) = scenes.describe_first_pass(p, "sd15").inits
    assert init.shape == (96, 64, 3)
    columns = np.flatnonzero(init[48, :, 0] > 127)
    assert (columns[0], columns[-1] + 1) == pytest.approx(expected, abs=1)


def test_every_init_picture_of_a_batch() -> None:
    p = job(init_images=[marked(64, 96, (0, 0, 8, 8)), marked(64, 96, (8, 8, 16, 16))])
    first, second = scenes.describe_first_pass(p, "sdxl").inits
    assert first[4, 4, 0] == 255 and first[12, 12, 0] == 0 and second[12, 12, 0] == 255


def test_transparent_becomes_white() -> None:
    p = job(init_images=[Image.new("RGBA", (64, 96), (0, 0, 0, 0))])
    (init,) = scenes.describe_first_pass(p, "sd15").inits
    assert (init == 255).all()


def test_only_masked_is_cut_out() -> None:
    nmask = torch.zeros(4, 12, 8)
    nmask[:, 3:9, 2:6] = 1
    p = job(init_images=[marked(400, 300, (100, 60, 200, 210))], paste_to=(100, 60, 100, 150), nmask=nmask)
    scene = scenes.describe_first_pass(p, "sd15")
    assert scene.crop == Crop(0.25, 0.2, 0.5, 0.7)
    assert scene.inits[0].mean() > 250
    assert scene.inpaint is not None and scene.inpaint.shape == (12, 8) and scene.inpaint.mean() == 0.25


def test_a_mask_with_a_batch_side() -> None:
    p = job(init_images=[marked(64, 96, (0, 0, 8, 8))], nmask=torch.ones(1, 4, 12, 8, dtype=torch.float16))
    inpaint = scenes.describe_first_pass(p, "sd15").inpaint
    assert inpaint is not None and inpaint.shape == (12, 8) and inpaint.dtype == np.float32


def test_hires_pass() -> None:
    p = job(hr_upscale_to_x=128, hr_upscale_to_y=192, truncate_x=0, truncate_y=0, firstpass_image=None)
    scene = scenes.describe_hires_pass(p, "sd15", Grid(24, 16))
    assert (scene.width, scene.height, scene.crop, scene.inits) == (128, 192, Crop(), ())


def test_a_hires_pass_whose_sides_are_cut() -> None:
    # 64x96 to 128x128: upscaled to 128x192, then 8 latent rows are cut away, 4 of them at the top.
    p = job(hr_upscale_to_x=128, hr_upscale_to_y=192, truncate_x=0, truncate_y=8, firstpass_image=None)
    scene = scenes.describe_hires_pass(p, "sd15", Grid(16, 16))
    assert (scene.width, scene.height) == (128, 128)
    crop = scene.crop
    assert (crop.x0, crop.y0, crop.x1, crop.y1) == pytest.approx((0, 32 / 192, 1, 160 / 192))


def test_the_upscale_button_starts_from_a_picture() -> None:
    picture = marked(64, 96, (0, 0, 64, 48))
    p = job(hr_upscale_to_x=128, hr_upscale_to_y=192, truncate_x=0, truncate_y=8, firstpass_image=picture)
    (init,) = scenes.describe_hires_pass(p, "sd15", Grid(16, 16)).inits
    assert init.shape[:2] == (64, 64)
    assert init[:31].min() == 255 and init[33:].max() == 0
