"""Samplers by the names that users know, as diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

_EVEN = {"timestep_spacing": "linspace"}
"""From the last timestep to the first, as k-diffusion and so every WebUI has it; SD1.5's own configuration says otherwise
because of PNDM. With it, a seed gives the WebUI's picture (tests/real/test_demo_base.py)."""

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
