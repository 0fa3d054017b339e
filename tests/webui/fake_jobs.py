"""Whole jobs of the fake WebUI, up to the saved picture: the order of A1111's and Forge's ``process_images_inner``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
from PIL import Image

from tests.webui import fake_webui

GREY = 90


class Runner:
    """``p.scripts``: what a script's hook raises is kept on the job, as the hosts log it."""

    def __init__(self, scripts: list[Any]) -> None:
        self.alwayson_scripts = scripts
        self.callback_map: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(p: Any, *given: Any, **named: Any) -> None:
            for script in self.alwayson_scripts:
                if hasattr(script, name):
                    args = p.script_args[script.args_from : script.args_to]
                    try:
                        getattr(script, name)(p, *given, *args, **named)
                    except Exception as error:
                        p.reported.append(error)

        return call


class Job(fake_webui.Processing):
    """One txt2img job with pictures.

    Attributes:
        picture_of: (job, seed) -> the picture, in place of what the latents would give.
    """

    script_args: Any
    picture_of: Any = None
    enable_hr = False
    init_images: Any = None
    sampler_name, scheduler, cfg_scale, tiling = "Euler a", "Automatic", 7.0, False
    prompt, negative_prompt, seed, subseed, subseed_strength = "a person", "", 7, 1, 0.0
    do_not_save_samples = do_not_save_grid = False
    outpath_samples = outpath_grids = ""
    paste_to: Any = None

    def __init__(self, sd_model: Any = None, runner: Any = None, args: Any = None, **settings: Any) -> None:
        self.styles: list[str] = []
        self.override_settings: dict[str, Any] = {}
        self.cached_c: list[Any] = [None, None]
        self.extra_result_images: list[Any] = []
        self.scripts, self.script_args = runner, args
        super().__init__(sd_model, None, [], sd_model.sampled_by, **settings)
        self.comments: Any = {}

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def close(self) -> None:
        self.sampler = None

    def get_token_merging_ratio(self, for_hr: bool = False) -> float:
        return 0.5

    def _hook(self, name: str, *args: Any, **kwargs: Any) -> None:
        getattr(self.scripts, name)(self, *args, **kwargs)

    def _start(self, batch: int) -> tuple[Any, Any, Any]:
        import torch

        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        shape = (4, self.height // 8, self.width // 8)
        width = cast(Any, self.unet).context
        x = torch.stack([torch.randn(shape, generator=one) for one in generators])
        conds = [SimpleNamespace(cond=torch.randn(7, width, generator=one), weight=1.0) for one in generators]
        uncond = torch.stack([torch.randn(7, width, generator=one) for one in generators])
        return x, SimpleNamespace(batch=[[one] for one in conds]), uncond

    def _finished(self, latent: Any, seed: int) -> Image.Image:
        made = self.picture_of(self, seed) if self.picture_of else None
        if made is None:
            values = (latent[:3].clamp(-3, 3) + 3) * 42
            made = values.movedim(0, -1).numpy().round().astype(np.uint8).repeat(8, 0).repeat(8, 1)
        return Image.fromarray(made)

    def run(self) -> list[Any]:
        """The whole job; latents of every batch."""
        host = sys.modules["modules.processing"], sys.modules["modules.images"], sys.modules["modules.shared"]
        processing, images, shared = cast("tuple[Any, Any, Any]", host)
        made: list[Any] = []
        pictures: list[Image.Image] = []
        infotexts: list[str] = []
        self._hook("before_process")
        total = self.batch_size * self.n_iter
        self.all_prompts, self.all_negative_prompts = [self.prompt] * total, [self.negative_prompt] * total
        self.all_seeds = [self.seed + (n if self.subseed_strength == 0 else 0) for n in range(total)]
        self.all_subseeds = [self.subseed + n for n in range(total)]
        self._hook("process")
        self.init()
        for number in range(self.n_iter):
            self.iteration = number
            shared.state.skipped = False
            if shared.state.interrupted:
                break
            batch = slice(number * self.batch_size, (number + 1) * self.batch_size)
            self.cut_prompts(number)
            self.seeds, self.subseeds = self.all_seeds[batch], self.all_subseeds[batch]
            x, conds, uncond = self._start(number)
            self._hook("process_batch", batch_number=number)
            self.keep_sampled()
            if number == 0 and not getattr(shared.cmd_opts, "no_prompt_history", False):
                processing.params_txt.append(self.all_prompts[0])
            latents = self.sample(x, conds, uncond)
            self.cut_prompts(number)
            made.append(latents)
            shared.state.job_no += 1

            def infotext(index: int = 0, use_main_prompt: bool = False) -> str:
                return create_infotext(self, self.seeds, index, use_main_prompt)

            for i, latent in enumerate(latents):
                self.batch_index = i
                pp = SimpleNamespace(image=self._finished(latent, self.seeds[i]))
                self._hook("postprocess_image", pp)
                self._hook("postprocess_image_after_composite", pp)
                if not self.do_not_save_samples:
                    images.save_image(pp.image, self.outpath_samples, "", self.seeds[i], info=infotext(i), p=self)
                infotexts.append(infotext(i))
                pictures.append(pp.image)
        first = 0
        if len(pictures) > 1 and not self.do_not_save_grid:
            pictures.insert(0, Image.new("RGB", (8, 8)))
            infotexts.insert(0, create_infotext(self, self.seeds, 0, True))
            first = 1
        self.processed = Processed(self, pictures, index_of_first_image=first, infotexts=infotexts)
        self._hook("postprocess", self.processed)
        processing.done.append(self)
        return made


class Img2Img(Job):
    """As txt2img, but for the picture: its first init picture with light added."""

    def __init__(self, init_images: Any, denoising_strength: float, resize_mode: int = 0, **settings: Any) -> None:
        common = {name: settings.pop(name) for name in list(settings) if name == "restore_faces"}
        super().__init__(**settings)
        self.init_images, self.denoising_strength, self.resize_mode = init_images, denoising_strength, resize_mode
        self.restored = common

    def _finished(self, latent: Any, seed: int) -> Image.Image:
        init = np.asarray(self.init_images[0]).astype(int) + 20
        return Image.fromarray(init.clip(0, 255).astype(np.uint8))


class Processed:
    """What a job hands back."""

    def __init__(self, p: Any, images: list[Any], *_: Any, **more: Any) -> None:
        self.images, self.infotexts = images, more.get("infotexts", [])
        self.index_of_first_image = more.get("index_of_first_image", 0)
        self.info = self.infotexts[0] if self.infotexts else ""
        for name in ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds"):
            setattr(self, name, getattr(p, name))
        self.comments = "".join(f"{comment}\n" for comment in p.comments)


def create_infotext(p: Any, all_seeds: list[int], index: int, use_main_prompt: bool) -> str:
    """As the hosts: lists by place, functions with the locals."""
    found: dict[str, Any] = {
        "Seed": p.all_seeds[0] if use_main_prompt else all_seeds[index],
        **p.extra_generation_params,
    }
    for key, value in found.items():
        if isinstance(value, list):
            found[key] = cast("list[Any]", value)[index]
        elif callable(value):
            found[key] = value(**locals())
    prompt = p.all_prompts[0] if use_main_prompt else p.prompts[index]
    return f"{prompt}\n" + ", ".join(
        f"{key}: {fake_webui.quote(value)}" for key, value in found.items() if value is not None
    )


def installed_into(fake: dict[str, ModuleType]) -> None:
    """Gives a fake host its processing, images and progress."""
    saved: list[str] = []

    def process_images(p: Any) -> Any:
        p.run()
        return p.processed

    def save_image(image: Any, path: str, _basename: str, seed: int, *, info: str, **_: Any) -> None:
        file = Path(path) / f"{len(saved)}-{seed}.png"
        image.save(file)
        saved.append(info)

    merged: list[float] = []

    def apply_token_merging(_model: Any, ratio: float) -> None:
        merged.append(ratio)

    vars(fake["modules.processing"]).update(
        process_images=process_images, process_images_inner=None, StableDiffusionProcessingImg2Img=Img2Img,
        Processed=Processed, done=[], params_txt=[],
    )  # fmt: skip
    images = ModuleType("modules.images")
    vars(images).update(save_image=save_image, saved=saved)
    vars(fake["modules"]).update(images=images)
    sys.modules["modules.images"] = images
    errors = ModuleType("modules.errors")
    vars(errors).update(reports=[], report=lambda text, exc_info: errors.reports.append(text))  # type: ignore[attr-defined]
    vars(fake["modules"]).update(errors=errors)
    sys.modules["modules.errors"] = errors
    vars(fake["modules.sd_models"]).update(apply_token_merging=apply_token_merging, merged=merged)
    vars(vars(fake["modules.shared"])["state"]).update(
        stopping_generation=False,
        job="job",
        job_no=0,
        job_count=1,
        textinfo=None,
        processing_has_refined_job_count=False,
    )
