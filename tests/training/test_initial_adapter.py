"""Where a training starts: fresh adapters that do little yet, and files of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from dp_adapter.core.adapter import Adapter, GatedSiteAdapter, SiteAdapter
from dp_adapter.core.projection import FaceProjection, Resampler
from dp_adapter.core.types import Features
from dp_adapter.errors import WeightsError
from dp_adapter.training.initial_adapter import add_pathways, new_adapter, new_resampler, read_initial_adapter
from dp_adapter.training.unet.adapted_unet import AdaptedUNet, Conditions, Mode
from dp_adapter.weights import formats
from dp_adapter.weights.families import own_adapter
from tests import tiny

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as UNet


@pytest.fixture(scope="module")
def model() -> UNet:
    return tiny.unet("sd15")


def plain_site(adapter: Adapter, index: int) -> SiteAdapter:
    site = adapter.site(index)
    assert isinstance(site, SiteAdapter)
    return site


def test_keys_and_values_start_as_the_texts(model: UNet) -> None:
    adapter = new_adapter(model, "sface", tokens=3)
    weights = model.state_dict()
    first = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    middle = "mid_block.attentions.0.transformer_blocks.0.attn2"
    assert torch.equal(plain_site(adapter, 0).to_k.weight, weights[f"{first}.to_k.weight"])
    assert torch.equal(plain_site(adapter, 15).to_v.weight, weights[f"{middle}.to_v.weight"])
    assert isinstance(adapter.projection, FaceProjection)
    assert adapter.projection(torch.zeros(2, 128)).shape == (2, 3, tiny.CONTEXT)
    assert all(parameter.requires_grad for parameter in adapter.parameters())
    with torch.no_grad():
        plain_site(adapter, 0).to_k.weight.zero_()
    assert model.state_dict()[f"{first}.to_k.weight"].abs().max() > 0


def test_pathways_start_without_effect(model: UNet) -> None:
    torch.manual_seed(0)
    adapter = new_adapter(model, "sface")
    inputs = tiny.inputs("sd15", [tiny.Row("cond")], (8, 8))
    given = Conditions(inputs.context, tiny.tokens().cond[None], torch.linspace(0, 1, 64).view(1, 1, 8, 8))
    made: list[torch.Tensor] = []
    for pathways in (False, True):
        if pathways:
            add_pathways(adapter, tca_rank=2, ffb=True)
        # A gate that is trained starts from the mask itself.
        adapted = AdaptedUNet(model, adapter, powers={"down": 1, "middle": 1, "up": 1})
        with torch.no_grad():
            made.append(adapted(inputs.latents, torch.tensor([300]), given).noise)
        adapted.release()
    torch.testing.assert_close(*made, atol=1e-5, rtol=1e-5)
    site = plain_site(adapter, 7)
    assert site.text is not None and site.blending is not None and site.text.k_down.weight.shape == (2, tiny.CONTEXT)
    assert add_pathways(adapter, tca_rank=4).site(7) is site and site.text.k_down.weight.shape[0] == 2


@pytest.mark.parametrize("mode", ["add", "gated"])
def test_transface_tokens(model: UNet, tmp_path: Path, mode: Mode) -> None:
    """FACT, and its tokens at plain sites: made, saved, read by the extension, gone on with."""
    adapter = new_adapter(model, "transface", mode, tokens=16, width=tiny.FACE)
    assert isinstance(adapter.projection, Resampler)
    path = tmp_path / "mine.safetensors"
    own_adapter.save(path, adapter, "sd15", "transface", {})
    read = formats.read(path)
    assert (read.encoders, read.tokens_per_photo, read.mode) == (("transface",), 16, mode)
    assert (dict(read.features_width), read.combine) == ({"transface": tiny.FACE}, "concatenate")
    patches = torch.randn(1, 9, tiny.FACE, generator=torch.Generator().manual_seed(0))
    tokens = read.tokens(Features(face_patches=patches))
    with torch.no_grad():
        torch.testing.assert_close(tokens.cond[None], adapter.projection(patches))
    assert tokens.uncond.shape == tokens.cond.shape and not torch.equal(tokens.uncond, tokens.cond)
    again = read_initial_adapter(path)
    assert (again.base, again.encoder, again.mode) == ("sd15", "transface", mode)
    for name, value in adapter.state_dict().items():
        assert torch.equal(again.adapter.state_dict()[name], value), name
    assert isinstance(again.adapter.site(0), GatedSiteAdapter) == (mode == "gated")


def test_a_resampler_as_wide_as_facts() -> None:
    with torch.device("meta"):
        net = new_resampler(512, 16, 768)
    assert net.latents.shape == (1, 16, 1024) and len(net.layers) == 4
    assert [tuple(p.shape) for p in net.layers[3].parameters() if p.ndim == 2][:2] == [(768, 1024), (1536, 1024)]


@pytest.mark.parametrize(
    ("family", "encoder"), [("faceid", "arcface"), ("faceid-plus", "arcface"), ("faceid-portrait", "arcface")]
)
def test_from_public_files(tmp_path: Path, family: str, encoder: str) -> None:
    path = tiny.write(tmp_path / "x.bin", tiny.family_tensors(family), "zip")
    start = read_initial_adapter(path)
    assert (start.base, start.encoder, start.mode) == ("sd15", encoder, "add")
    assert isinstance(start.adapter.projection, FaceProjection)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in start.adapter.parameters())
    own_adapter.save(tmp_path / "y.safetensors", start.adapter, start.base, start.encoder, {})
    read, before = formats.read(tmp_path / "y.safetensors"), formats.read(path)
    assert torch.equal(plain_site(read.adapter, 3).to_k.weight, plain_site(before.adapter, 3).to_k.weight.float())
    if family != "faceid-plus":
        face = Features(faceid=torch.randn(1, tiny.FACE))
        torch.testing.assert_close(read.tokens(face).cond, before.tokens(face).cond)


def test_from_fact(tmp_path: Path) -> None:
    start = read_initial_adapter(tiny.write(tmp_path / "x.safetensors", tiny.fact_tensors(), "safetensors"))
    assert (start.encoder, start.mode) == ("transface", "gated")


@pytest.mark.parametrize("family", ["ip-adapter", "ip-adapter-plus", "faceid-sequence"])
def test_tokens_that_cannot_be_trained_with(tmp_path: Path, family: str) -> None:
    path = tiny.write(tmp_path / "x.bin", tiny.family_tensors(family), "zip")
    with pytest.raises(WeightsError, match=r"cannot start from x\.bin"):
        read_initial_adapter(path)


def test_an_encoder_that_cannot_be_trained_for(model: UNet) -> None:
    with pytest.raises(WeightsError, match=r"'eva'.*sface"):
        new_adapter(model, "eva")
