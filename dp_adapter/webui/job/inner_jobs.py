"""Jobs inside a job: the same picture with another seed, or a face alone; ``run_inside`` runs them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dp_adapter.settings import FacePass, Report, Settings

if TYPE_CHECKING:
    from PIL.Image import Image

EditPrompts = Callable[[tuple[str, str], bool], tuple[str, str]]

INNER = "dp_adapter_inner"  # attribute of a processing object that is such a job
TITLE = "DP-Adapter"
_CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")
_GATHERED = ("latents_after_sampling", "pixels_after_sampling", "extra_result_images")  # Forge's lists of a job
# What a pass over a face has in common with the job, where the host's objects have it.
_COMMON = (
    "outpath_samples", "outpath_grids", "subseed_strength", "seed_resize_from_h", "seed_resize_from_w",
    "sampler_name", "scheduler", "steps", "cfg_scale", "distilled_cfg_scale", "tiling", "eta", "s_churn", "s_tmin",
    "s_tmax", "s_noise", "s_min_uncond",
)  # fmt: skip


def is_inner(p: Any) -> bool:
    """Whether a job is one inside another, ours or ADetailer's: nothing is measured or made anew in it."""
    return hasattr(p, INNER) or _is_adetailers(p)


def request_inside(p: Any, settings: Settings) -> Settings:
    """What is left of a request in such a job: our own ones were made for it, ADetailer's take the panel's."""
    return settings.replace(report=Report(), face_pass=FacePass(use="off")) if _is_adetailers(p) else settings


def _is_adetailers(p: Any) -> bool:
    return bool(getattr(p, "_ad_inner", False))


def picture_number(p: Any) -> int:
    """Which picture of the whole job is being finished, from 0."""
    return p.iteration * p.batch_size + p.batch_index


def prepare_again(p: Any, before: Any, seed: int, settings: Settings, edit_prompts: EditPrompts | None = None) -> Any:
    """A job that makes the picture being finished again, alone: same scripts, LoRA, ControlNet and hires pass.

    Args:
        before: a copy of ``p`` from before its preparation.
        settings: of our part in it.
        edit_prompts: prompt and negative prompt, and whether they are the hires pass's -> the same with the words that
            our part would put into them, where it is off.
    """
    number = picture_number(p)
    p2: Any = copy.copy(before)
    # What others hung on the object in place of its methods acts on the original; they hang it on this one too.
    own: dict[str, Any] = p2.__dict__
    methods: Any = p2.__class__
    for name, value in list(own.items()):
        method = inspect.isroutine(value) and inspect.isroutine(getattr(methods, name, None))
        if method or (inspect.ismethod(value) and value.__self__ is p):
            del own[name]
    prompts = _edit(p.all_prompts[number], p.all_negative_prompts[number], False, edit_prompts)
    changes: dict[str, Any] = {
        "prompt": prompts[0],
        "negative_prompt": prompts[1],
        "styles": [],  # in the prompts already
        "seed": seed,
        "subseed": p.all_subseeds[number],
        "batch_size": 1,
        "n_iter": 1,
    }
    if getattr(p, "enable_hr", False):
        prompts = _edit(p.all_hr_prompts[number], p.all_hr_negative_prompts[number], True, edit_prompts)
        changes |= {"hr_prompt": prompts[0], "hr_negative_prompt": prompts[1]}
    inits = getattr(before, "init_images", None)
    if inits and len(inits) > 1:
        changes["init_images"] = [inits[p.batch_index]]
    own.update(changes)
    p2.script_args = _replace_request(p, settings)
    return _mark_inner(p2)


def _edit(prompt: str, negative: str, hires: bool, edit_prompts: EditPrompts | None) -> tuple[str, str]:
    return (prompt, negative) if edit_prompts is None else edit_prompts((prompt, negative), hires)


def prepare_face(p: Any, picture: Image, strength: float, settings: Settings) -> Any:
    """A job that makes a square picture anew by img2img, with our script alone.

    Args:
        settings: of our part in it.
    """
    from modules import processing

    number = picture_number(p)
    common = {name: getattr(p, name) for name in _COMMON if hasattr(p, name)}
    p2: Any = processing.StableDiffusionProcessingImg2Img(
        **common,
        sd_model=p.sd_model,
        init_images=[picture],
        resize_mode=0,
        denoising_strength=strength,
        prompt=p.all_prompts[number],
        negative_prompt=p.all_negative_prompts[number],
        styles=[],
        seed=p.all_seeds[number],
        subseed=p.all_subseeds[number],
        batch_size=1,
        n_iter=1,
        width=picture.width,
        height=picture.height,
        restore_faces=False,
    )
    p2.color_corrections = []  # none are made: pasting keeps the colours
    runner = select_scripts(p, ours=True)
    p2.script_args = _replace_request(p, settings)
    p2.scripts = runner
    return _mark_inner(p2)


def _mark_inner(p2: Any) -> Any:
    setattr(p2, INNER, True)
    p2.do_not_save_samples = p2.do_not_save_grid = True
    p2.override_settings = {}  # those of the job are in force
    p2.extra_generation_params = {}
    p2.comments = {}
    for name in _CACHES:
        if hasattr(p2, name):
            setattr(p2, name, [None] * len(getattr(p2, name)))
    for name in _GATHERED:
        if hasattr(p2, name):
            setattr(p2, name, [])
    p2.__dict__.pop("dp_adapter_overrides", None)  # of X/Y/Z, which are in the settings
    return p2


def _replace_request(p: Any, settings: Settings) -> Any:
    """The job's script args with a request of ours in place of the panel's; ADetailer's pass inherits them."""
    args = list(p.script_args)
    for script in p.scripts.alwayson_scripts:
        if script.title() == TITLE:
            args[script.args_from] = settings.to_dict()
    return tuple(args) if isinstance(p.script_args, tuple) else args


def select_scripts(p: Any, ours: bool) -> Any:
    """The job's scripts, only ours or only the others."""
    runner = copy.copy(p.scripts)
    runner.alwayson_scripts = [one for one in runner.alwayson_scripts if (one.title() == TITLE) == ours]
    runner.callback_map = {}  # the hosts' list of who has which hook
    return runner
