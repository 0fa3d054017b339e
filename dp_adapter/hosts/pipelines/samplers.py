"""Samplers by the names that users know, as diffusers' schedulers made for a checkpoint's noise schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dp_adapter.errors import DPAdapterError, HostError

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
_RHO = 7  # of Karras' spacing (arXiv 2206.00364)
_LARGEST_STEP = 2  # ratio of the first two noise levels of a second-order step from pure noise


def scheduler(name: str, config: Any, begin: int = 0) -> Any:
    """A fresh diffusers scheduler with the noise schedule of ``config``, another scheduler's configuration.

    Its timesteps are chosen when their number is known (``_timed``); what it raises is a HostError in words.

    Args:
        begin: how many of its timesteps img2img will leave out.
    """
    import diffusers

    class_name, changes = SAMPLERS[name]
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    if zero_snr:
        changes = {**changes, "trained_betas": _zero_snr_betas(config), "rescale_betas_zero_snr": False}
    karras = zero_snr and bool(changes.get("use_karras_sigmas"))
    if karras:
        changes = {**changes, "use_karras_sigmas": False}
    made = getattr(cast(Any, diffusers), class_name).from_config({**config, **changes})
    own = made.config.get("timestep_spacing")

    def set_timesteps(steps: int, device: Any = None) -> None:
        if own is not None:
            made.register_to_config(timestep_spacing=_spacing(own, steps, config))
        _timed(made, times, steps, device, karras)
        if name == "pndm":
            made.timesteps = _warmed_up(made.timesteps, begin)
        if name == "heun" and zero_snr and float(made.sigmas[1]):
            # Nothing of a picture is left in pure noise, so any level describes it; at 4096 the second half of the
            # first step would be off by thousands.
            made.sigmas[0] = min(float(made.sigmas[0]), _LARGEST_STEP * float(made.sigmas[1]))

    times, step = made.set_timesteps, made.step
    made.set_timesteps = _in_words(name, wraps(times)(set_timesteps))
    made.step = _in_words(name, _precise(step) if zero_snr else step)
    made.add_noise = _in_words(name, made.add_noise)
    return made


def _timed(made: Any, times: Callable[..., None], steps: int, device: Any, karras: bool) -> None:
    """Sets as many timesteps, in the spacing of the configuration."""
    total: int = made.config.num_train_timesteps
    if karras:
        times(timesteps=_karras_timesteps(made.alphas_cumprod, steps), device=device)
        return
    if "original_inference_steps" in made.config:
        # LCM's own steps, of which these are some; divisors of all, so that the last timestep is one.
        fewest = max(steps, 50)
        made.register_to_config(
            original_inference_steps=next(n for n in range(fewest, total + 1) if total % n == 0 or n == total)
        )
    times(steps, device=device)


def _spacing(own: str, steps: int, config: Any) -> str:
    """Where timesteps lie. Trailing begins at the last one, as models that know pure noise want it (arXiv 2305.08891).

    A single step has to begin there with every model, and where all timesteps are taken the others would leave them.
    """
    pure = config.get("prediction_type", "epsilon") != "epsilon"
    return "trailing" if pure or steps in (1, config["num_train_timesteps"]) else own


def _zero_snr_betas(config: Any) -> list[float]:
    """The rescaled schedule, for those that cannot rescale; with a last share of 2^-24, by which can be divided."""
    import diffusers

    alphas: Tensor = cast(Any, diffusers).EulerDiscreteScheduler.from_config(config).alphas_cumprod.double()
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    return [float(one) for one in 1 - alphas / before]


def _karras_timesteps(alphas: Tensor, steps: int) -> list[int]:
    """Karras' spacing from pure noise, whose sigma is as good as infinite: what follows the first step is spaced so.

    The second timestep is that of trailing spacing. All differ.
    """
    total = len(alphas)
    log_sigmas = (((1 - alphas) / alphas).double().log() / 2).numpy()
    ends = np.exp(log_sigmas[[max(round(total - total / steps) - 1, 0), 0]]) ** (1 / _RHO)
    sigmas = np.linspace(float(ends[0]), float(ends[1]), steps - 1, dtype=np.float64) ** _RHO
    wanted = np.interp(np.log(sigmas), log_sigmas, np.arange(total, dtype=np.float64))
    timesteps = [total - 1]
    for place in range(steps - 1):
        timesteps.append(max(min(round(float(wanted[place])), timesteps[-1] - 1), steps - 2 - place))
    return timesteps


def _warmed_up(timesteps: Tensor, begin: int) -> Tensor:
    """PNDM's timesteps with the doubled one, by which it warms up, where it will begin: t0, t1, t1, t2 ..."""
    plain = torch.cat([timesteps[:1], timesteps[2:]]) if len(timesteps) > 2 else timesteps[:1]
    at = begin + 1
    return torch.cat([plain[: at + 1], plain[at:]])


def _precise(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step in float32: half precision cannot hold what is left of a picture in almost pure noise."""

    @wraps(step)
    def precise(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        made = step(model_output.float(), timestep, sample.float(), *args, **kwargs)
        if not isinstance(made, tuple):
            return made
        return tuple(one.to(sample.dtype) for one in cast("tuple[Tensor, ...]", made))

    return precise


def _in_words(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)  # pipelines look at the signature
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except DPAdapterError:
            raise
        except Exception as error:  # diffusers' schedulers raise whatever their arithmetic does
            if lacks_memory(error):
                raise
            reason = (str(error).splitlines() or [""])[0][:200]
            others = ", ".join(other for other in ("euler", "ddim") if other != name)
            raise HostError(
                f"The sampler '{name}' does not get through these steps with this model "
                f"({type(error).__name__}: {reason})",
                f"Take another sampler, such as {others}, or another number of steps.",
            ) from error

    return told


def lacks_memory(error: Exception) -> bool:
    """Whether there was not enough memory, on whichever device: torch has no one type for that."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words
