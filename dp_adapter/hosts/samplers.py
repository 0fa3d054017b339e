"""Samplers by the names that users know, as diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

_EVEN = {"timestep_spacing": "linspace"}
"""From the last timestep to the first, as in k-diffusion and so in every WebUI: the same seed, the same picture
(tests/real/test_demo_base.py). SD1.5's configuration in diffusers has it otherwise, because of PNDM."""

SAMPLERS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", _EVEN),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True, **_EVEN}),
    "euler_a": ("EulerAncestralDiscreteScheduler", _EVEN),
    "heun": ("HeunDiscreteScheduler", _EVEN),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "unipc": ("UniPCMultistepScheduler", _EVEN),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lcm": ("LCMScheduler", {}),
}


def scheduler(name: str, config: Any) -> Any:
    """A fresh diffusers scheduler with the noise schedule of ``config``, another scheduler's configuration."""
    import diffusers

    class_name, changes = SAMPLERS[name]
    return getattr(cast(Any, diffusers), class_name).from_config(config, **changes)
