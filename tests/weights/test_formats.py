"""The table of families: recognised by keys alone, read with sizes from shapes, refused in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.core.types import Features
from dp_adapter.errors import WeightsError
from dp_adapter.hosts.attach.sites import Base, site_names
from dp_adapter.weights import formats
from dp_adapter.weights.checkpoint import Checkpoint, RecipeOptions
from dp_adapter.weights.files import WeightFile
from dp_adapter.weights.foreign_files import describe
from tests import tiny

CONTAINERS: list[tiny.Container] = ["safetensors", "zip", "legacy"]
FAMILIES = {
    "ip-adapter": 4,
    "ip-adapter-plus": 6,
    "ip-adapter-full-face": 257,
    "faceid": 4,
    "faceid-plus": 4,
    "faceid-portrait": 16,
    "faceid-sequence": 16,
    "mip-adapter": 4,
    "mip-adapter-plus": 6,
}
CONCATENATED = {"faceid-portrait", "faceid-sequence", "mip-adapter", "mip-adapter-plus"}


@lru_cache
def tensors_of(family: str, base: Base = "sd15") -> dict[str, Tensor]:
    return dict(tiny.flat(tiny.family_tensors(family, base, FAMILIES[family])))


def nested(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    tree: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        top, rest = key.split(".", 1)
        tree.setdefault(top, {})[rest] = value
    return tree


# Reading.


@pytest.mark.parametrize("name", ["model.bin", "ip-adapter-plus-face_sdxl.safetensors", "instantid.pt", "x.ckpt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_told_by_keys_under_any_name(tmp_path: Path, family: str, name: str) -> None:
    container = CONTAINERS[len(family + name) % 3]
    checkpoint = formats.read(tiny.write(tmp_path / name, nested(tensors_of(family)), container))
    assert checkpoint.family == family
    assert checkpoint.base == "sd15"
    assert checkpoint.tokens_per_photo == FAMILIES[family]
    assert checkpoint.context == tiny.CONTEXT
    assert len(checkpoint.adapter.sites) == 16
    assert checkpoint.combine == ("concatenate" if family in CONCATENATED else "average")
    assert checkpoint.sharing == ("words" if family.startswith("mip-") else "regions")


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_hold_the_same(tmp_path: Path, container: tiny.Container) -> None:
    checkpoint = formats.read(tiny.write(tmp_path / "x.bin", nested(tensors_of("faceid")), container))
    for key, expected in tensors_of("faceid").items():
        if key.endswith("_ip.weight"):
            number, name = key.split(".")[1:3]
            actual = checkpoint.adapter.site(int(number) // 2).get_parameter(name.removesuffix("_ip") + ".weight")
            assert torch.equal(actual, expected), key


@pytest.mark.parametrize("family", ["faceid", "faceid-plus"])
def test_sdxl_is_told_by_the_number_of_layers(tmp_path: Path, family: str) -> None:
    path = tiny.write(tmp_path / "x.safetensors", tensors_of(family, "sdxl"), "safetensors")
    checkpoint = formats.read(path)
    assert (checkpoint.base, len(checkpoint.adapter.sites), len(checkpoint.lora)) == ("sdxl", 70, 8 * 70)
    if family == "faceid-plus":
        assert checkpoint.variants == ("faceid-plusv2",)


def test_fact(tmp_path: Path) -> None:
    checkpoint = formats.read(tiny.write(tmp_path / "x.ckpt", tiny.fact_tensors(), "legacy"))
    assert (checkpoint.family, checkpoint.mode, checkpoint.base) == ("facechain-fact", "gated", "sd15")
    assert checkpoint.tokens_per_photo == 16
    widths = [checkpoint.adapter.site(i).get_submodule("linear").weight.shape[0] for i in range(16)]  # type: ignore[union-attr]
    assert widths == [tiny.width_of("sd15", i) for i in range(16)]


def test_the_first_fact(tmp_path: Path) -> None:
    """Eval mode of its batch normalisation counts, and both rows get the same tokens."""
    path = tiny.write(tmp_path / "x.ckpt", tiny.first_fact_tensors(patches=16), "zip")
    checkpoint = formats.read(path)
    assert (checkpoint.family, checkpoint.mode, checkpoint.tokens_per_photo) == ("facechain-fact-first", "gated", 5)
    patches = torch.randn(2, 16, tiny.FACE)
    tokens = checkpoint.tokens(Features(face_patches=patches))
    assert tokens.cond.shape == (10, tiny.CONTEXT) and torch.equal(tokens.cond, tokens.uncond)
    state = {key: value.float() for key, value in tiny.first_fact_tensors(patches=16).items()}
    w, b, f = (state[f"local_fac_prj.{key}"] for key in ("net.weight", "net.bias", "feature.0.weight"))
    mean, var, gain, bias = (
        state[f"local_fac_prj.feature.1.{key}"][None, :, None]
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    mixed = (torch.einsum("tl,nlc->ntc", w, patches) + b[None, :, None]) @ f.T
    expected = (mixed - mean) / (var + 1e-5).sqrt() * gain + bias
    torch.testing.assert_close(tokens.cond, expected.flatten(0, 1), atol=1e-4, rtol=1e-4)
    with pytest.raises(WeightsError, match="with 16 patches of a face, but the encoder gives 144"):
        checkpoint.tokens(Features(face_patches=torch.zeros(1, 144, tiny.FACE)))


def test_a_lora_inside_a_file_is_read_whole(tmp_path: Path) -> None:
    checkpoint = formats.read(tiny.write(tmp_path / "x.bin", nested(tensors_of("faceid")), "zip"))
    assert {(entry.layer, entry.linear) for entry in checkpoint.lora} == {
        (layer, linear) for layer in range(32) for linear in ("to_q", "to_k", "to_v", "to_out")
    }
    entry = next(entry for entry in checkpoint.lora if (entry.layer, entry.linear) == (13, "to_out"))
    assert torch.equal(entry.up, tensors_of("faceid")["ip_adapter.13.to_out_lora.up.weight"])
    assert torch.equal(entry.down, tensors_of("faceid")["ip_adapter.13.to_out_lora.down.weight"])


def test_keys_and_values_are_the_files_own_memory() -> None:
    """SDXL adapters are gigabytes: their K and V must not lie in memory twice."""
    flat = tensors_of("faceid")
    file = WeightFile(Path("x.bin"), flat, {})
    row = formats.recognise(file)
    assert row is not None
    checkpoint = row.read(file)
    for index in range(16):
        for name in "kv":
            weight = checkpoint.adapter.site(index).get_parameter(f"to_{name}.weight")
            assert weight.data_ptr() == flat[f"ip_adapter.{2 * index + 1}.to_{name}_ip.weight"].data_ptr()
    for entry in checkpoint.lora:
        assert entry.up.data_ptr() == flat[f"ip_adapter.{entry.layer}.{entry.linear}_lora.up.weight"].data_ptr()


def test_a_checkpoint_is_frozen_and_ready_for_inference(tmp_path: Path) -> None:
    adapter = formats.read(tiny.write(tmp_path / "x.bin", nested(tensors_of("faceid-plus")), "zip")).adapter
    assert not any(parameter.requires_grad for parameter in adapter.parameters())
    assert not any(module.training for path, module in adapter.named_modules() if path and path != "sites")
    assert not any(parameter.is_meta for parameter in adapter.parameters())


# Tokens.

N = 2


def all_features() -> Features:
    generator = torch.Generator().manual_seed(0)
    return Features(
        faceid=torch.randn(N, tiny.FACE, generator=generator),
        image_embeds=torch.randn(N, tiny.CLIP, generator=generator),
        clip_hidden=torch.randn(N, 257, tiny.CLIP, generator=generator),
        clip_hidden_uncond=torch.randn(1, 257, tiny.CLIP, generator=generator),
    )


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.startswith("mip-")])
def test_tokens_of_several_photos_follow_one_another(tmp_path: Path, family: str) -> None:
    checkpoint = formats.read(tiny.write(tmp_path / "x.bin", nested(tensors_of(family)), "zip"))
    features = all_features()
    if family == "faceid-sequence":
        features = Features(faceid=torch.randn(N, 512, generator=torch.Generator().manual_seed(0)))
    tokens = checkpoint.tokens(features)
    assert tokens.cond.shape == tokens.uncond.shape == (N * FAMILIES[family], tiny.CONTEXT)
    assert tokens.cond.dtype == torch.float32
    assert torch.isfinite(tokens.cond).all()
    assert not torch.allclose(tokens.cond, tokens.uncond)
    assert tokens.uncond.any(), "uncond tokens are projected zeros, never zeros"
    first = Features(*(None if x is None else x[:1] for x in vars(features).values()))
    torch.testing.assert_close(checkpoint.tokens(first).cond, tokens.cond[: FAMILIES[family]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["mip-adapter", "mip-adapter-plus"])
def test_mip_is_ip_adapter_with_the_tokens_of_several_photos_averaged(tmp_path: Path, family: str) -> None:
    """Averaged after the projection, as in its official inference."""
    flat = tensors_of(family)
    checkpoint = formats.read(tiny.write(tmp_path / "x.bin", nested(flat), "zip"))
    plain = {key: tensor for key, tensor in flat.items() if "text_to_weight" not in key}
    relative = formats.read(tiny.write(tmp_path / "y.bin", nested(plain), "zip"))
    assert relative.family == family.replace("mip", "ip") and checkpoint.variants == ()
    theirs, ours = relative.tokens(all_features()), checkpoint.tokens(all_features())
    for kind in ("cond", "uncond"):
        each = getattr(theirs, kind).reshape(N, FAMILIES[family], -1)
        torch.testing.assert_close(getattr(ours, kind), each.mean(0))
    for index in range(16):
        layer = checkpoint.adapter.site(index).get_submodule("text_to_weight")
        assert torch.equal(layer.get_parameter("weight"), flat[f"ip_adapter.{2 * index + 1}.text_to_weight.weight"])


def test_face_plus_options_matter(tmp_path: Path) -> None:
    checkpoint = formats.read(tiny.write(tmp_path / "x.bin", nested(tensors_of("faceid-plus")), "zip"))
    assert checkpoint.variants == ("faceid-plusv2", "faceid-plus")
    v1, v2, less = (
        checkpoint.tokens(all_features(), options).cond
        for options in (RecipeOptions(shortcut=False), RecipeOptions(), RecipeOptions(structure=0.5))
    )
    face = v2 - v1  # v2 is the face's own tokens plus what v1 gives
    torch.testing.assert_close(less, face + 0.5 * v1, atol=1e-5, rtol=1e-5)
    assert face.abs().max() > 0.1


@pytest.mark.parametrize(
    ("family", "features", "words"),
    [
        ("faceid", Features(), "needs face embeddings"),
        ("faceid", Features(faceid=torch.zeros(1, 128)), "of width 24, but the encoder gives 128"),
        ("ip-adapter", Features(image_embeds=torch.zeros(1, 1024)), "width 40.* 1024"),
        ("ip-adapter-plus", Features(clip_hidden=torch.zeros(1, 257, 40)), "black picture"),
        ("faceid-plus", Features(faceid=torch.zeros(1, 24)), "CLIP hidden states"),
        ("faceid-sequence", Features(faceid=torch.zeros(1, 24)), "width 512.* 24"),
    ],
)
def test_features_that_do_not_fit_are_refused(tmp_path: Path, family: str, features: Features, words: str) -> None:
    checkpoint = formats.read(tiny.write(tmp_path / "x.bin", nested(tensors_of(family)), "zip"))
    with pytest.raises(WeightsError, match=words):
        checkpoint.tokens(features)


# Incomplete and foreign files.


def changed(family: str, change: Callable[[dict[str, Tensor]], object]) -> dict[str, Tensor]:
    flat = dict(tensors_of(family))
    change(flat)
    return flat


def swap_widths(flat: dict[str, Tensor]) -> None:
    flat["ip_adapter.5.to_v_ip.weight"] = torch.zeros(7, tiny.CONTEXT).half()


def other_context(flat: dict[str, Tensor]) -> None:
    for name in "kv":
        flat[f"ip_adapter.5.to_{name}_ip.weight"] = torch.zeros(32, 99).half()


def vectors(flat: dict[str, Tensor]) -> None:
    for name in "kv":
        flat[f"ip_adapter.5.to_{name}_ip.weight"] = torch.zeros(32).half()


BROKEN: Mapping[str, tuple[str, Callable[[dict[str, Tensor]], object], str]] = {
    "a layer": ("ip-adapter", lambda x: x.pop("ip_adapter.31.to_k_ip.weight"), "has 15 attention layers"),
    "only V of a layer": ("ip-adapter", lambda x: x.pop("ip_adapter.31.to_v_ip.weight"), "layer 31 lacks"),
    "K and V of two sizes": ("ip-adapter", swap_widths, "layer 5 lacks a matching"),
    "vectors for K and V": ("ip-adapter", vectors, "layer 5 lacks a matching"),
    "another context": ("ip-adapter", other_context, "layer 5 takes tokens of width 99.* makes 48"),
    "a bias": ("ip-adapter", lambda x: x.pop("image_proj.proj.bias"), "projection is incomplete.*proj.bias"),
    "half a resampler": (
        "ip-adapter-plus",
        lambda x: x.pop("image_proj.layers.1.1.3.weight"),
        "projection is incomplete.*layers.1.1.3.weight",
    ),
    "a perceiver's norm": (
        "faceid-plus",
        lambda x: x.pop("image_proj.perceiver_resampler.norm_out.weight"),
        "projection is incomplete",
    ),
    "a layer of MIP-Adapter": (
        "mip-adapter",
        lambda x: x.pop("ip_adapter.31.text_to_weight.weight"),
        "layer 31 lacks a text_to_weight of 48 channels",
    ),
    "a whole LoRA layer": (
        "faceid",
        lambda x: [x.pop(f"ip_adapter.8.to_q_lora.{part}.weight") for part in ("up", "down")],
        "LoRA has 127 of 128",
    ),
    "half a LoRA layer": ("faceid", lambda x: x.pop("ip_adapter.8.to_q_lora.up.weight"), "LoRA has .* of 128"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_incomplete_file_says_what_is_missing(tmp_path: Path, what: str) -> None:
    family, change, words = BROKEN[what]
    path = tiny.write(tmp_path / "partial.safetensors", changed(family, change), "safetensors")
    with pytest.raises(WeightsError, match=words) as caught:
        formats.read(path)
    assert "partial.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("local_fac_prj.norm_out.bias", "projection is incomplete"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.processor.norm2.bias", "mid_block.* is incomplete"),
        ("up_blocks.3.attentions.2.transformer_blocks.0.attn2.processor.linear.weight", "up_block.* is incomplete"),
    ],
)
def test_an_incomplete_fact_file(tmp_path: Path, key: str, words: str) -> None:
    tensors = tiny.fact_tensors()
    del tensors[key]
    with pytest.raises(WeightsError, match=words):
        formats.read(tiny.write(tmp_path / "x.ckpt", tensors, "zip"))


def test_fact_with_a_block_missing(tmp_path: Path) -> None:
    tensors = {key: value for key, value in tiny.fact_tensors().items() if not key.startswith("mid_block")}
    with pytest.raises(WeightsError, match=r"has 15 gated attention layers; SD1\.5 needs 16"):
        formats.read(tiny.write(tmp_path / "x.ckpt", tensors, "zip"))


def test_a_family_can_be_said_but_must_exist_and_fit(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "x.bin", nested(tensors_of("faceid")), "zip")
    assert formats.read(path, "faceid-portrait").combine == "concatenate"
    with pytest.raises(WeightsError, match=r"no family 'faceid-v9'.*faceid-plus"):
        formats.read(path, "faceid-v9")
    for wrong in ("ip-adapter", "ip-adapter-plus", "ip-adapter-full-face", "faceid-plus", "dp-adapter"):
        with pytest.raises(WeightsError):
            formats.read(path, wrong)


FOREIGN: Mapping[str, tuple[tuple[str, ...], str]] = {
    "whole SD checkpoint": (
        ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x", "cond_stage_model.y"),
        "whole Stable Diffusion checkpoint",
    ),
    "LoRA": (("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",), "looks like a LoRA"),
    "text encoder LoRA": (("lora_te_text_model_encoder_layers_0.lora_up.weight",), "looks like a LoRA"),
    "ControlNet (ldm)": (("control_model.input_hint_block.0.weight",), "ControlNet"),
    "ControlNet (diffusers)": (("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"), "ControlNet"),
    "VAE (ldm)": (("first_stage_model.decoder.conv_in.weight",), "VAE"),
    "VAE (bare)": (("encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight"), "VAE"),
    "VAE (diffusers)": (("decoder.up_blocks.0.resnets.0.conv1.weight",), "VAE"),
    "embedding": (("string_to_param.*",), "textual inversion"),
    "CLIP vision": (("vision_model.encoder.layers.0.mlp.fc1.weight",), "CLIP vision encoder"),
    "EVA-CLIP": (("visual.blocks.0.attn.q_proj.weight", "text.x"), "EVA-CLIP"),
    "PuLID for FLUX": (("pulid_ca.0.to_q.weight", "pulid_encoder.latents"), "PuLID for FLUX"),
    "half of PuLID": (("id_adapter_attn_layers.1.id_to_k.weight",), "PuLID without its encoder"),
    "unknown relative": (("image_proj.strange", "ip_adapter.1.to_k_ip.weight"), "relative of IP-Adapter"),
    "nothing known": (("b.weight", "a.weight"), r"keys are unknown \(the first are a.weight, b.weight\)"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_other_models_are_named(tmp_path: Path, kind: str, suffix: str) -> None:
    keys, words = FOREIGN[kind]
    container: tiny.Container = "safetensors" if suffix == ".safetensors" else "zip"
    path = tiny.write(tmp_path / f"x{suffix}", {key: torch.ones(2) for key in keys}, container)
    with pytest.raises(WeightsError, match=f"x{suffix} is not a supported identity adapter: .*{words}"):
        formats.read(path)


# The published layouts at their real widths, on the meta device.

LAYOUTS = Path(__file__).parents[3] / "shared" / "reference" / "layouts"
needs_layouts = pytest.mark.skipif(not LAYOUTS.is_dir(), reason=f"no published layouts in {LAYOUTS}")
DICTS = {"state_dict", "state_dict_text", "state_dict_adapter", "controlnet"}


def layout(name: str) -> WeightFile:
    facts: dict[str, Any] = json.loads((LAYOUTS / f"{name}.json").read_text(encoding="utf-8"))
    tensors: dict[str, Tensor] = {}
    for part, shapes in facts.items():
        for key, shape in shapes.items() if isinstance(shapes, dict) else ():
            full = key if part in DICTS else f"{part}.{key}"
            if isinstance(shape, list) and all(isinstance(side, int) for side in shape):  # the rest are remarks
                tensors[full] = torch.empty(shape, dtype=torch.float16, device="meta")
    return WeightFile(Path(f"{name}.bin"), tensors, {})


# family, base, tokens, encoder widths, LoRA layers
SUPPORTED: Mapping[str, tuple[str, str, int, dict[str, int], int]] = {
    "ip-adapter_sd15": ("ip-adapter", "sd15", 4, {"clip-embeds": 1024}, 0),
    "ip-adapter_sd15_light": ("ip-adapter", "sd15", 4, {"clip-embeds": 1024}, 0),
    "ip-adapter_sd15_vit-G": ("ip-adapter", "sd15", 4, {"clip-embeds": 1280}, 0),
    "ip-adapter_sdxl": ("ip-adapter", "sdxl", 4, {"clip-embeds": 1280}, 0),
    "ip-adapter_sdxl_vit-h": ("ip-adapter", "sdxl", 4, {"clip-embeds": 1024}, 0),
    "ip-adapter-plus_sd15": ("ip-adapter-plus", "sd15", 16, {"clip-hidden": 1280}, 0),
    "ip-adapter-plus-face_sd15": ("ip-adapter-plus", "sd15", 16, {"clip-hidden": 1280}, 0),
    "ip-adapter-plus_sdxl_vit-h": ("ip-adapter-plus", "sdxl", 16, {"clip-hidden": 1280}, 0),
    "ip-adapter-plus-face_sdxl_vit-h": ("ip-adapter-plus", "sdxl", 16, {"clip-hidden": 1280}, 0),
    "ip-adapter-full-face_sd15": ("ip-adapter-full-face", "sd15", 257, {"clip-hidden": 1280}, 0),
    "ip-adapter-faceid_sd15": ("faceid", "sd15", 4, {"arcface": 512}, 128),
    "ip-adapter-faceid_sdxl": ("faceid", "sdxl", 4, {"arcface": 512}, 560),
    "ip-adapter-faceid-plus_sd15": ("faceid-plus", "sd15", 4, {"arcface": 512, "clip-hidden": 1280}, 128),
    "ip-adapter-faceid-plusv2_sd15": ("faceid-plus", "sd15", 4, {"arcface": 512, "clip-hidden": 1280}, 128),
    "ip-adapter-faceid-plusv2_sdxl": ("faceid-plus", "sdxl", 4, {"arcface": 512, "clip-hidden": 1280}, 560),
    "ip-adapter-faceid-portrait_sd15": ("faceid-portrait", "sd15", 16, {"arcface": 512}, 0),
    "ip-adapter-faceid-portrait-v11_sd15": ("faceid-portrait", "sd15", 16, {"arcface": 512}, 0),
    "ip-adapter-faceid-portrait_sdxl": ("faceid-portrait", "sdxl", 16, {"arcface": 512}, 0),
    "ip-adapter-faceid-portrait_sdxl_unnorm": ("faceid-sequence", "sdxl", 16, {"arcface-raw": 512}, 0),
    "instantid_ip-adapter": ("faceid-sequence", "sdxl", 16, {"arcface-raw": 512}, 0),
    "facechain_fact_adapter": ("facechain-fact", "sd15", 16, {"transface": 512}, 0),
    "facechain_fact_adapter_v0": ("facechain-fact-first", "sd15", 196, {"transface": 512}, 0),
    "pulid_v1": ("pulid", "sdxl", 10, {"arcface-raw": 512, "eva": 1024}, 0),
    "pulid_v1.1": ("pulid", "sdxl", 32, {"arcface-raw": 512, "eva": 1024}, 0),
    "mip_model_sdxl": ("mip-adapter", "sdxl", 4, {"clip-embeds": 1280}, 0),
    "mip_model_sdxl_plus": ("mip-adapter-plus", "sdxl", 16, {"clip-hidden": 1280}, 0),
    "photomaker_v1_id_encoder": ("photomaker", "sdxl", 0, {"pixels": 224}, 0),
    "photomaker_v2_id_encoder": ("photomaker", "sdxl", 0, {"pixels": 224, "arcface-raw": 512}, 0),
    "consistentid_sd15": ("consistentid", "sd15", 4, {"arcface": 512, "clip-hidden": 1280, "clip-parts": 1280}, 128),
    "consistentid_sdxl": ("consistentid", "sdxl", 4, {"arcface": 512, "clip-hidden": 1280, "clip-parts": 1280}, 560),
    "storymaker_mask": ("storymaker", "sdxl", 40, {"arcface": 512, "clip-hidden": 1280, "clip-person": 1280}, 560),
    "masterweaver": ("masterweaver", "sd15", 16, {"clip-parsed": 1024}, 0),
    "wplus_adapter": ("w-plus", "sd15", 4, {"w-plus": 512}, 0),
}
WIDTHS = {"sd15": (320, 640, 1280, 1280), "sdxl": (320, 640, 1280)}


@needs_layouts
@pytest.mark.parametrize("name", SUPPORTED)
def test_published_layouts(name: str) -> None:
    family, base, tokens, encoders, lora = SUPPORTED[name]
    file = layout(name)
    rows = [row for row in formats.FORMATS if row.recognise(file)]
    # A portrait file is a FaceID file with more tokens and no LoRA; no other file is claimed twice.
    assert [row.family for row in rows] == ([family, "faceid"] if family == "faceid-portrait" else [family])
    checkpoint: Checkpoint = rows[0].read(file)
    assert (checkpoint.base, checkpoint.tokens_per_photo, len(checkpoint.lora)) == (base, tokens, lora)
    assert dict(checkpoint.features_width) == encoders
    assert checkpoint.encoders == tuple(encoders)
    assert checkpoint.context == {"sd15": 768, "sdxl": 2048}[base]
    for site in site_names(checkpoint.base) if len(checkpoint.adapter.sites) else ():
        module = checkpoint.adapter.site(site.index)
        linear = module.get_submodule("linear" if family.startswith("facechain-fact") else "to_k")
        assert isinstance(linear, nn.Linear)
        assert linear.out_features == WIDTHS[base][site.halvings], site


UNSUPPORTED = {
    "fastcomposer": "FastComposer",
    "instantid_identitynet_controlnet": "ControlNet",
    "facechain_transface_s": "TransFace",
    "uniid_sdxl": "UniID",
    "uniportrait-faceid_sd15": "UniPortrait",
    "uniportrait-router_sd15": "UniPortrait",
}


@needs_layouts
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_published_layouts_that_are_not_supported_are_named(name: str) -> None:
    file = layout(name)
    assert formats.recognise(file) is None
    words = describe(file.tensors)
    assert re.search(UNSUPPORTED[name], words), words


@needs_layouts
def test_every_published_layout_is_in_one_of_the_two_lists() -> None:
    names = {path.stem for path in LAYOUTS.glob("*.json")} - {"layer_order"}
    assert names == set(SUPPORTED) | set(UNSUPPORTED)


@needs_layouts
@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_layer_order(base: Base) -> None:
    order: list[dict[str, Any]] = json.loads((LAYOUTS / "layer_order.json").read_text(encoding="utf-8"))[base]
    assert len(order) == 2 * len(site_names(base))
    for site in site_names(base):
        text = json.dumps(order[2 * site.index + 1])
        assert f"{site.diffusers}.attn2" in text
        assert f"{site.ldm}.attn2" in text
