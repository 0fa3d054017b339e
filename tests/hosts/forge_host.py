"""Host Forge for the conformance battery: a stand-in, and the real UNets where ``forge_real`` finds them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dp_adapter.core.injection import Injection
from dp_adapter.core.text.text_side import PersonWords
from dp_adapter.core.types import Row
from dp_adapter.hosts.attach import forge
from dp_adapter.hosts.attach.sites import Base, site_names
from dp_adapter.hosts.attach.word_maps import WordMaps
from tests import tiny
from tests.hosts import forge_real
from tests.hosts.forge_unet import Unet


class Schedule(nn.Module):
    """A noise schedule whose sigmas are the timesteps themselves, so that tests can name fractions of one.

    What it tells of the noise at a timestep is all the same that of Stable Diffusion.
    """

    sigma_min, sigma_max = torch.tensor(0.0), torch.tensor(999.0)

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma

    def sigma(self, timestep: Tensor) -> Tensor:
        alphas = tiny.ALPHAS[timestep.long()]
        return ((1 - alphas) / alphas).sqrt()


class Model(nn.Module):
    """What Forge's ``UnetPatcher.model`` offers; the prediction stays as the UNet gives it."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.diffusion_model, self.predictor = unet, Schedule()

    def apply_model(self, x: Tensor, t: Tensor, c_crossattn: Tensor, **kwargs: Any) -> Tensor:
        return self.diffusion_model(x, self.predictor.timestep(t).float(), context=c_crossattn, **kwargs)


class Patcher:
    """A ``UnetPatcher`` that clones as Forge's does."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> Patcher:
        cloned = Patcher(self.model)
        cloned.model_options = copy.deepcopy(self.model_options)
        return cloned

    def set_model_patch(self, patch: Any, name: str) -> None:
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches[name] = [*patches.get(name, []), patch]

    def set_model_patch_replace(self, patch: Any, name: str, block: str, number: int, index: int | None = None) -> None:
        replacing = self.model_options["transformer_options"].setdefault("patches_replace", {})
        key = (block, number) if index is None else (block, number, index)
        replacing.setdefault(name, {})[key] = patch


class Forge:
    """One patcher, called as Forge's ``calc_cond_uncond_batch`` calls it."""

    def __init__(self, base: Base, unet: nn.Module | None = None) -> None:
        self.base: Base = base
        self.model = (Unet(tiny.unet(base)) if unet is None else unet).eval().requires_grad_(False)
        self.unet: Any = Patcher(Model(self.model))

    def __call__(
        self, given: tiny.Inputs, timestep: float | None = None, marks: Sequence[int] | None = None, **more: Any
    ) -> Tensor:
        rows = len(given.latents)
        marks = [0] * rows if marks is None else marks
        sigmas = torch.full((rows // len(marks) or 1,), given.timestep if timestep is None else timestep)
        options = dict(self.unet.model_options["transformer_options"])
        per_row = [mark for mark in marks for _ in sigmas]
        options |= {"cond_or_uncond": list(marks), "sigmas": sigmas, "cond_mark": torch.tensor(per_row).float()}
        for kind, name in ((0, "cond_indices"), (1, "uncond_indices")):
            options[name] = [row for row, mark in enumerate(per_row) if mark == kind]
        conditions: dict[str, Any] = {"c_crossattn": given.context, "transformer_options": options, **more}
        if given.text_embeds is not None:
            conditions["y"] = vector_of(given)
        sigma = sigmas.new_full((rows,), sigmas[0].item())
        wrapper = self.unet.model_options.get("model_function_wrapper")
        if wrapper is None:
            return self.unet.model.apply_model(given.latents, sigma, **conditions)
        call = {"input": given.latents, "timestep": sigma, "c": conditions, "cond_or_uncond": list(marks)}
        return wrapper(self.unet.model.apply_model, call)

    def attached(
        self,
        injection: Injection,
        rows: Sequence[Row],
        maps: WordMaps | None = None,
        words: PersonWords | None = None,
    ) -> AbstractContextManager[object]:
        return forge.attach(self.unet, injection, rows, maps=maps, words=words)

    def block(self, index: int) -> nn.Module:
        return self.model.get_submodule(site_names(self.base)[index].ldm)

    def bare(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.block(index)(*args, **{**kwargs, "transformer_options": {"block": ("input", 0), "block_index": 0}})


def vector_of(given: tiny.Inputs) -> Tensor:
    """SDXL's vector y [R, D + 6 * 8] as ldm and sgm take it."""
    from diffusers.models.embeddings import get_timestep_embedding

    assert given.text_embeds is not None
    assert given.time_ids is not None
    times = get_timestep_embedding(given.time_ids.flatten(), 8, flip_sin_to_cos=True, downscale_freq_shift=0)
    return torch.cat([given.text_embeds, times.unflatten(0, (len(given.time_ids), -1)).flatten(1)], -1)


def hosts() -> Mapping[str, Callable[[Base], Forge]]:
    """The stand-in, and the real hosts that this machine has."""
    found: dict[str, Callable[[Base], Forge]] = {"forge": Forge}
    for name, build in forge_real.builders().items():
        found[name] = partial(_real, build)
    return found


def _real(build: forge_real.Build, base: Base) -> Forge:
    return Forge(base, build(forge_real.config(base), forge_real.state(base)))
