"""Stable Diffusion pipelines of diffusers from files on disk: no network, no code from files, no second copy."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dp_adapter.core.schedule import progress_of
from dp_adapter.errors import HostError, MissingDependencyError
from dp_adapter.hosts.pipelines.diffusers_job import DiffusersJob, Pixels, Prompts, Task
from dp_adapter.hosts.pipelines.samplers import lacks_memory, scheduler
from dp_adapter.hosts.pipelines.single_file import load_single_file
from dp_adapter.hosts.prompts import encode_prompts
from dp_adapter.naming import first_line

__all__ = ["Around", "DiffusersJob", "Pipeline", "Progress", "Prompts", "load", "progress", "run"]

Pipeline = Any
"""A ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline`` (diffusers gives no common typed base)."""

Progress = Callable[[int, int], None]
"""Called after every step with the steps done and their total."""

Around = Callable[[Pipeline], AbstractContextManager[object]]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_CLASSES: dict[str, dict[Task, str]] = {
    prefix: {
        "txt2img": f"{prefix}Pipeline",
        "img2img": f"{prefix}Img2ImgPipeline",
        "inpaint": f"{prefix}InpaintPipeline",
    }
    for prefix in ("StableDiffusion", "StableDiffusionXL")
}


def load(base: Path, device: str = "auto", dtype: str = "auto", *, config: Path | None = None) -> Pipeline:
    """Opens a model and moves it to a device.

    Args:
        base: a folder as diffusers' ``save_pretrained`` writes it, or one ``.safetensors`` or ``.ckpt`` file.
        device: ``auto``, or torch's name of one.
        dtype: ``auto`` (float16 on CUDA, else float32), ``float32``, ``float16`` or ``bfloat16``.
        config: for a single file of other widths than SD1.5's and SDXL's, the folder with its configurations; by
            default the folder beside it that has its name.

    Raises:
        HostError: missing, damaged or another kind of model, no such device, or out of memory.
        MissingDependencyError: diffusers is not installed.
    """
    target = _device(device)
    if dtype not in _DTYPES and dtype != "auto":
        raise HostError(f"There is no dtype '{dtype}'", f"Known are auto, {', '.join(_DTYPES)}.")
    kind = _DTYPES.get(dtype, torch.float16 if target.type == "cuda" else torch.float32)
    with _damage_in_words(base), _memory_in_words("load the model"), quiet():
        if base.is_dir():
            pipeline = _load_folder(base, kind)
        elif base.suffix.lower() in (".safetensors", ".ckpt") and base.is_file():
            pipeline = load_single_file(base, kind, config)
        else:
            problem = "There is no model" if not base.exists() else "No model is this file:"
            raise HostError(f"{problem} {base}", "Give a diffusers folder or a .safetensors or .ckpt checkpoint.")
        pipeline.set_progress_bar_config(disable=True)
        # One picture is decoded at a time: less memory, and a picture does not depend on its batch.
        pipeline.vae.enable_slicing()
        return pipeline.to(target)


def run(
    pipeline: Pipeline, job: DiffusersJob, progress: Progress | None = None, around: Around | None = None
) -> list[Pixels]:
    """Samples a job: txt2img, img2img or inpainting, by what it holds.

    Every picture has a CPU generator of its own, so it does not depend on its batch nor on the device's generator.
    Where an inpainting mask is 0 the pixels are those of ``job.init``.

    Args:
        pipeline: from ``load``; it is left as it is.
        around: entered around the call with the very pipeline that runs, which shares the models of ``pipeline``.

    Returns:
        ``job.batch`` pictures, uint8 RGB [height, width, 3].

    Raises:
        HostError: the model cannot do this task, out of memory, or the result is not a number.
    """
    running = _for_task(pipeline, job)
    with _memory_in_words("make the picture"):
        staged = encode_prompts.Staged(running, job)
        with around(running) if around else nullcontext():
            images = running(
                **staged.first,
                **_inputs(job),
                num_images_per_prompt=job.batch,
                guidance_scale=float(job.guidance),
                num_inference_steps=job.steps,
                generator=[torch.Generator().manual_seed(job.seed + i) for i in range(job.batch)],
                output_type="np",
                callback_on_step_end=_reporter(progress, staged if job.later else None),
                callback_on_step_end_tensor_inputs=_held(running) if job.later else ["latents"],
            ).images
    if not np.isfinite(images).all():
        raise HostError("The model's result is not a number", "Load the model with dtype float32 or bfloat16.")
    return [_finished(image, job) for image in images]


def progress(pipeline: Pipeline, job: DiffusersJob) -> tuple[float, ...]:
    """How far the sampling is at each call of the UNet, from 0 to 1.

    Raises:
        HostError: the sampler cannot make so many steps with this model.
    """
    left_out = job.steps - job.denoising_steps
    made = scheduler(job.sampler, pipeline.scheduler.config, left_out)
    made.set_timesteps(job.steps)
    last: int = made.config.num_train_timesteps
    return tuple(progress_of(one, last) for one in made.timesteps[left_out * made.order :])


def _load_folder(folder: Path, dtype: torch.dtype) -> Pipeline:
    import diffusers

    index = folder / "model_index.json"
    if not index.is_file():
        raise HostError(f"{folder} is no diffusers model: it has no model_index.json", "Give the folder that has one.")
    parts = json.loads(index.read_text(encoding="utf-8"))
    made_for = str(parts.get("_class_name"))
    classes = next((tasks for tasks in _CLASSES.values() if made_for in tasks.values()), None)
    if classes is None:
        raise HostError(f"{folder.name} is made for {made_for}", "Choose a Stable Diffusion 1.5 or SDXL model.")
    xl = classes is _CLASSES["StableDiffusionXL"]
    unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    if xl and parts.get("text_encoder", [None])[0] is None:
        raise HostError(f"{folder.name} is an SDXL refiner", "Choose the SDXL base model.")
    if not xl and unet.get("use_linear_projection"):
        raise HostError(f"{folder.name} is a Stable Diffusion 2 model", "Choose a Stable Diffusion 1.5 or SDXL model.")
    halves = [".fp16." in path.name for path in (folder / "unet").glob("*.safetensors")]
    return getattr(cast(Any, diffusers), classes["txt2img"]).from_pretrained(
        str(folder),
        torch_dtype=dtype,
        local_files_only=True,
        use_safetensors=True,  # pickles may hold code
        variant="fp16" if halves and all(halves) else None,
        **({"add_watermarker": False} if xl else {"safety_checker": None, "requires_safety_checker": False}),
    )


def _for_task(pipeline: Pipeline, job: DiffusersJob) -> Pipeline:
    """A pipeline of the job's task and sampler around the same models."""
    import diffusers

    xl = hasattr(pipeline, "text_encoder_2")
    if pipeline.unet.config.in_channels == 9 and job.task != "inpaint":
        raise HostError("This model is made for inpainting", "Give a picture and a mask, or choose another model.")
    classes = _CLASSES["StableDiffusionXL" if xl else "StableDiffusion"]
    sampler = scheduler(job.sampler, pipeline.scheduler.config, job.steps - job.denoising_steps)
    parts = {**pipeline.components, "scheduler": sampler}
    switches: dict[str, bool] = {"add_watermarker": False} if xl else {"requires_safety_checker": False}
    if xl:
        switches["force_zeros_for_empty_prompt"] = pipeline.config.force_zeros_for_empty_prompt
    running = getattr(cast(Any, diffusers), classes[job.task])(**parts, **switches)
    running.set_progress_bar_config(disable=True)
    return running


def _inputs(job: DiffusersJob) -> dict[str, Any]:
    from PIL import Image

    size = {"width": job.width, "height": job.height}
    if job.init is None:
        return size
    # One copy per picture: of a single one, diffusers' inpainting would draw from the first generator only.
    images = [Image.fromarray(job.init)] * job.batch
    inputs: dict[str, Any] = {"image": images, "strength": float(job.strength)}
    if job.mask is None:
        return inputs
    return inputs | size | {"mask_image": Image.fromarray(job.mask)}


def _finished(image: Any, job: DiffusersJob) -> Pixels:
    made = np.asarray(image, np.float32) * 255
    if job.init is not None and job.mask is not None:
        share = job.mask[..., None].astype(np.float32) / 255
        made = share * made + (1 - share) * job.init
    return np.rint(made).astype(np.uint8)


def _held(running: Pipeline) -> list[str]:
    """What of the prompts a pipeline holds while it samples."""
    return [name for name in ("prompt_embeds", "add_text_embeds") if name in running._callback_tensor_inputs]


def _reporter(progress: Progress | None, staged: encode_prompts.Staged | None) -> Callable[..., dict[str, Tensor]]:
    def report(running: Pipeline, step: int, _timestep: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if progress:
            progress(step + 1, running.num_timesteps)
        return state | staged.update(running, step, state) if staged else state

    return report


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise HostError(f"The device '{name}' cannot be used ({first_line(error)})", "Try 'auto' or 'cpu'.") from error


@contextmanager
def _memory_in_words(purpose: str) -> Generator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if lacks_memory(error):
            hint = "Take a smaller size or batch, float16, or another device."
            raise HostError(f"There is not enough memory to {purpose}", hint) from error
        raise


@contextmanager
def _damage_in_words(base: Path) -> Generator[None]:
    """Errors of diffusers and transformers about files, whose type depends on the library's version."""
    try:
        yield
    except ImportError as error:
        package = error.name or "diffusers"
        raise MissingDependencyError(package, "Opening a Stable Diffusion model", "generate") from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise HostError(f"{base.name} cannot be loaded ({reason[:300]})", "It is damaged or incomplete.") from error


@contextmanager
def quiet() -> Generator[None]:
    """Without the progress bars that diffusers and transformers show about files."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    bars = [cast(Any, module) for module in (of_diffusers, of_transformers)]
    shown = [module for module in bars if module.is_progress_bar_enabled()]
    for module in shown:
        module.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # diffusers 0.42 renames it to dtype, which versions before do not know.
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            yield
    finally:
        for module in shown:
            module.enable_progress_bar()
