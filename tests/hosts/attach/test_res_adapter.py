"""A ResAdapter in every host equals diffusers' UNet with the LoRA merged and the norms exchanged."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dp_adapter.core.injection import Identity, Injection
from dp_adapter.core.res_adapter import SizeCompanion
from dp_adapter.core.types import Row
from dp_adapter.errors import HostError, WeightsError
from dp_adapter.hosts.attach import diffusers as diffusers_host
from dp_adapter.hosts.attach.sites import Base
from dp_adapter.weights import res_adapter
from tests import tiny
from tests.hosts.forge_host import Forge
from tests.hosts.protocol import Host, same_state, state_of

ROWS = (Row("cond"), Row("uncond"))
RANK, ALPHA = 4, 2.0


def layers(base: Base) -> tuple[dict[str, nn.Conv2d], dict[str, nn.GroupNorm]]:
    """The layers of diffusers' UNet that a ResAdapter changes."""
    modules: dict[str, nn.Module] = {}
    modules |= tiny.unet(base).named_modules()
    convs = {path: one for path, one in modules.items() if isinstance(one, nn.Conv2d) and "samplers.0.conv" in path}
    norms = {path: one for path, one in modules.items() if isinstance(one, nn.GroupNorm) and ".resnets." in path}
    return convs, norms


def write(folder: Path, base: Base) -> Path:
    """A random one under the public keys."""
    folder.mkdir()
    torch.manual_seed(8)
    convs, norms = layers(base)
    lora: dict[str, Tensor] = {}
    for path, conv in convs.items():
        name = "lora_unet_" + path.replace(".", "_")
        lora[f"{name}.alpha"] = torch.tensor(ALPHA).half()
        lora[f"{name}.lora_down.weight"] = torch.randn(RANK, conv.in_channels, 3, 3).half() / 4
        lora[f"{name}.lora_up.weight"] = torch.randn(conv.out_channels, RANK, 1, 1).half() / 4
    save_file(lora, str(folder / "pytorch_lora_weights.safetensors"))
    normed: dict[str, Tensor] = {}
    for path, norm in norms.items():
        normed[f"{path}.weight"] = 1 + torch.randn(norm.num_channels) / 4
        normed[f"{path}.bias"] = torch.randn(norm.num_channels) / 4
    save_file(normed, str(folder / "diffusion_pytorch_model.safetensors"))
    return folder


def merged(base: Base, companion: SizeCompanion, strength: float) -> nn.Module:
    """diffusers' UNet with other weights, by hand."""
    unet = copy.deepcopy(tiny.unet(base))
    modules = dict(unet.named_modules())
    with torch.no_grad():
        for path, conv in companion.convs.items():
            weight = modules[path].get_parameter("weight")
            low, high = conv.down.float().flatten(1), conv.up.float().flatten(1)
            weight += strength * conv.scale * (high @ low).reshape(weight.shape)
        for path, (scale, shift) in companion.norms.items():
            for name, new in (("weight", scale), ("bias", shift)):
                own = modules[path].get_parameter(name)
                own += strength * (new - own)
    return unet


def injection(base: Base, **changes: object) -> Injection:
    return replace(Injection((Identity(tiny.adapter(base, 3), tiny.tokens()),)), **changes)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def own(host: Host) -> Host:
    if isinstance(host, Forge):
        pytest.skip("the stand-in has diffusers' residual blocks; Forge's own have ldm's names")
    return host


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_equals_the_merged_model(own: Host, tmp_path: Path, strength: float) -> None:
    host = own
    read = res_adapter.read(write(tmp_path / "res", host.base))
    assert read.base == host.base
    assert len(read.companion.convs) == {"sd15": 6, "sdxl": 4}[host.base]
    given = tiny.inputs(host.base, ROWS)
    model = merged(host.base, read.companion, strength)
    plain = injection(host.base)
    before = state_of(host.model)
    with torch.no_grad():
        with diffusers_host.attach(model, plain, ROWS):
            expected = tiny.call(model, given)
        with host.attached(plain, ROWS):
            without = host(given)
        with host.attached(replace(plain, companion=(read.companion, strength)), ROWS):
            actual = host(given)
    assert same_state(before, state_of(host.model))
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)
    assert (without - expected).abs().max() > 1e-2


def test_nothing_at_strength_0_and_without_an_identity(host: Host, tmp_path: Path) -> None:
    companion = res_adapter.read(write(tmp_path / "res", host.base)).companion
    given = tiny.inputs(host.base, ROWS)
    plain = injection(host.base)
    with torch.no_grad():
        unpatched = host(given)
        with host.attached(plain, ROWS):
            expected = host(given)
        with host.attached(replace(plain, companion=(companion, 0.0)), ROWS):
            assert torch.equal(host(given), expected)
        with host.attached(Injection((), companion=(companion, 1.0)), ROWS):
            assert torch.equal(host(given), unpatched)


def test_another_base_is_refused(small: Host, tmp_path: Path) -> None:
    companion = res_adapter.read(write(tmp_path / "res", "sdxl")).companion
    before = state_of(small.model)
    changed = injection("sd15", companion=(companion, 1.0))
    with pytest.raises(HostError, match="ResAdapter"), small.attached(changed, ROWS):
        pass
    assert same_state(before, state_of(small.model))


def test_files_are_told_by_their_keys(tmp_path: Path) -> None:
    folder = write(tmp_path / "res", "sd15")
    lora, norms = folder / "pytorch_lora_weights.safetensors", folder / "diffusion_pytorch_model.safetensors"
    both = res_adapter.read(folder)
    for one in (lora.rename(folder / "x.safetensors"), norms):
        assert set(res_adapter.read(one).companion.norms) == set(both.companion.norms)
    alone = tmp_path / "alone"
    alone.mkdir()
    assert res_adapter.read((folder / "x.safetensors").rename(alone / "x.safetensors")).companion.norms == {}
    with pytest.raises(WeightsError, match="no LoRA of a ResAdapter"):
        res_adapter.read(norms)
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, str(other))
    with pytest.raises(WeightsError, match="is no ResAdapter"):
        res_adapter.read(other)
