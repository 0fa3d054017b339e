"""The real patcher, sampling function and noise schedule of Forge, reForge or Forge classic around the real UNet."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.core.injection import Form, Identity, Injection, TextPathway
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.types import Grid, Row
from dp_adapter.hosts.attach import forge
from dp_adapter.hosts.attach.forge_options import sampler_rows
from tests import tiny
from tests.hosts import forge_real

LEFT = tiny.box(0, 0, 0.5, 1)
GIVEN = tiny.inputs("sd15", [Row("cond"), Row("uncond"), Row("cond", 1), Row("uncond", 1)])


class Real:
    """``sample`` calls the host's own ``calc_cond_uncond_batch``: denoised predictions (cond, uncond) [B, 4, h, w]."""

    def __init__(self, name: str) -> None:
        self.unet_model = forge_real.builders()[name](forge_real.config("sd15"), forge_real.state("sd15")).eval()
        self.unet_model.requires_grad_(False)
        self.unet: Any
        self.conditions: Any
        if name == "forge main":
            self._backend()
        else:
            self._ldm_patched()

    def _backend(self) -> None:
        prediction: Any = importlib.import_module("backend.modules.k_prediction").Prediction(prediction_type="epsilon")
        model: Any = self.unet_model
        model.storage_dtype = model.computation_dtype = torch.float32
        model.load_device = model.offload_device = model.initial_device = torch.device("cpu")
        patcher = importlib.import_module("backend.patcher.unet").UnetPatcher
        self.unet = patcher.from_model(model, None, None, k_predictor=prediction)
        self.conditions = importlib.import_module("backend.sampling.condition").compile_conditions
        self._calc = importlib.import_module("backend.sampling.sampling_function").calc_cond_uncond_batch

    def _ldm_patched(self) -> None:
        sampling: Any = importlib.import_module("ldm_patched.modules.model_sampling")
        schedule = type("ModelSampling", (sampling.ModelSamplingDiscrete, sampling.EPS), {})
        patcher = importlib.import_module("ldm_patched.modules.model_patcher").ModelPatcher
        self.unet = patcher(
            LdmModel(self.unet_model, schedule(SimpleNamespace(sampling_settings={}))),
            torch.device("cpu"),
            torch.device("cpu"),
        )
        cross = importlib.import_module("ldm_patched.modules.conds").CONDCrossAttn

        def conditions(context: Tensor) -> list[dict[str, Any]]:
            return [{"model_conds": {"c_crossattn": cross(context)}, "uuid": "one"}]

        self.conditions = conditions
        try:
            samplers: Any = importlib.import_module("ldm_patched.modules.samplers")
        except ModuleNotFoundError as error:
            pytest.skip(f"the samplers of this checkout need a whole WebUI: {error}")
        self._calc = samplers.calc_cond_uncond_batch

    def sample(
        self, pictures: list[int], sigma: float = 2.0, unet: Any = None, cfg: bool = True
    ) -> tuple[Tensor, Tensor]:
        x = torch.cat([GIVEN.latents[2 * i : 2 * i + 1] for i in pictures]) * sigma
        cond, uncond = (self.conditions(torch.cat([GIVEN.context[2 * i + k][None] for i in pictures])) for k in (0, 1))
        options = (unet or self.unet).model_options
        model = (unet or self.unet).model
        return self._calc(model, cond, uncond if cfg else None, x, torch.full((len(x),), sigma), options)


class LdmModel(nn.Module):
    """What of ``BaseModel`` its importable parts use; the whole of it needs a running WebUI."""

    def __init__(self, unet: nn.Module, schedule: Any) -> None:
        super().__init__()
        self.diffusion_model, self.model_sampling = unet, schedule
        self.current_patcher = None

    def memory_required(self, *_shapes: Any, **_more: Any) -> float:
        return 0.0

    def apply_model(self, x: Tensor, t: Tensor, c_crossattn: Tensor, transformer_options: Any) -> Tensor:
        scaled = self.model_sampling.calculate_input(t, x)
        steps = self.model_sampling.timestep(t).float()
        out = self.diffusion_model(
            scaled, steps, context=c_crossattn, control=None, transformer_options=transformer_options
        )
        return self.model_sampling.calculate_denoised(t, out.float(), x)


@pytest.fixture(params=list(forge_real.builders()) or [pytest.param("", marks=pytest.mark.real)], scope="module")
def built(request: pytest.FixtureRequest) -> Real:
    if not {"DP_FORGE_PATH", "DP_LDM_PATCHED_PATH"} & set(os.environ):
        pytest.skip("needs DP_FORGE_PATH or DP_LDM_PATCHED_PATH, a checkout of a host")
    return Real(request.param)


@pytest.fixture
def real(built: Real) -> Iterator[Real]:
    with torch.no_grad():
        yield built


def injection(form: Form = "auto", mask: Tensor | None = None, **changes: Any) -> Injection:
    return Injection((Identity(tiny.adapter("sd15"), tiny.tokens(), mask=mask),), form=form, **changes)


def sampled(real: Real, what: Injection, pictures: list[int], **call: Any) -> tuple[Tensor, Tensor]:
    with forge.attach(real.unet, what, sampler_rows(len(pictures)), Grid(16, 16)) as attached:
        out = real.sample(pictures, **call)
    assert attached.bypass.calls == 1
    return out


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def unchanged(n: Tensor, _extra: Any) -> Tensor:
    return n


@pytest.mark.parametrize("form", ["folded", "plain"])
def test_rows_of_a_batch_are_what_they_are_alone(real: Real, form: Form) -> None:
    bare = real.sample([0, 1])
    cond, uncond = sampled(real, injection(form), [0, 1])
    assert min(largest(cond - bare[0]), largest(uncond - bare[1])) > 1e-2
    for number in (0, 1):
        alone = sampled(real, injection(form), [number])
        torch.testing.assert_close(cond[number], alone[0][0], atol=2e-5, rtol=0)
        torch.testing.assert_close(uncond[number], alone[1][0], atol=2e-5, rtol=0)
        without = sampled(real, injection(form), [number], cfg=False)[0]
        torch.testing.assert_close(cond[number], without[0], atol=2e-5, rtol=0)
    again = real.sample([0, 1])
    assert torch.equal(bare[0], again[0])
    assert torch.equal(bare[1], again[1])


def test_the_hosts_own_clone_carries_the_injection(real: Real) -> None:
    expected = sampled(real, injection(), [0])
    with forge.attach(real.unet, injection(), sampler_rows(1)):
        clone = real.unet.clone()
        clone.set_model_attn1_output_patch(unchanged)
        out = real.sample([0], unet=clone)
    assert torch.equal(out[0], expected[0])
    assert real.unet.model_options == {"transformer_options": {}}


def test_strict_text_region_holds_for_denoised_predictions(real: Real) -> None:
    bare = real.sample([0, 1])
    strict = sampled(real, injection(mask=LEFT, text=TextPathway(strict=True)), [0, 1])
    loose = sampled(real, injection(mask=LEFT), [0, 1])
    for out, other, base in zip(strict, loose, bare, strict=True):
        assert largest((out - base)[..., 8:]) < 2e-5
        assert largest((out - base)[..., :8]) > 1e-2
        assert largest((other - base)[..., 8:]) > 1e-3


@pytest.mark.parametrize(("sigma", "acts"), [(14.7, False), (8.0, False), (1.0, True), (0.03, True)])
def test_progress_follows_sigma(real: Real, sigma: float, acts: bool) -> None:
    """Half of the timesteps lie above sigma 1.6."""
    out = sampled(real, injection(schedule=Schedule(start=0.5)), [0], sigma=sigma)[0]
    assert torch.equal(out, real.sample([0], sigma)[0]) != acts
