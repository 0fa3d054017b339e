"""PhotoMaker, ConsistentID and ID-EA: read from their containers, and equal to the official classes' numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter.core.types import Features
from dp_adapter.errors import WeightsError
from dp_adapter.hosts.attach.sites import site_names
from dp_adapter.weights import formats
from dp_adapter.weights.attention_lora import attention_lora
from dp_adapter.weights.checkpoint import Checkpoint
from dp_adapter.weights.families import personal
from dp_adapter.weights.families import photomaker as photomaker_files
from dp_adapter.weights.families.personal import Personal
from dp_adapter.weights.files import open_weights
from tests import tiny
from tests.weights import fused_files as files
from tests.weights.numbers import numbers, weights

OFFICIAL = Path(__file__).parents[1] / "official" / "fused.npz"
Version = Literal["v1", "v2"]


def official(name: str) -> Tensor:
    with np.load(OFFICIAL) as kept:
        return torch.from_numpy(kept[name])


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def photomaker(path: Path, version: Version) -> Checkpoint:
    return formats.read(tiny.write(path / f"{version}.bin", files.photomaker_tensors(version), "zip"))


def photomaker_features(checkpoint: Checkpoint) -> Features:
    assert checkpoint.tower is not None
    faceid, pixels = numbers("faceid", (2, 512)) * 20, numbers("pixels", (2, 3, 28, 28))
    return Features(id_embeds=checkpoint.tower.embed(pixels, faceid))


# PhotoMaker.


@pytest.mark.parametrize(("version", "tokens"), [("v1", 2), ("v2", 4)])
def test_photomaker_equals_the_official_classes(tmp_path: Path, version: Version, tokens: int) -> None:
    checkpoint = photomaker(tmp_path, version)
    person = checkpoint.on_text(photomaker_features(checkpoint))
    assert person is not None and person.tokens == tokens
    context = numbers("context", (8, files.TEXT))
    fused = person.fuse(context, range(3, 3 + tokens))
    assert_close(fused, official(f"photomaker-{version}"))
    assert torch.equal(context, numbers("context", (8, files.TEXT))), "the given context is not written to"
    assert torch.equal(fused[:3], context[:3]) and torch.equal(fused[3 + tokens :], context[3 + tokens :])


def test_photomaker_acts_where_the_word_is(tmp_path: Path) -> None:
    checkpoint = photomaker(tmp_path, "v1")
    person = checkpoint.on_text(photomaker_features(checkpoint))
    assert person is not None
    context = numbers("context", (8, files.TEXT))
    whole = person.fuse(context, [2, 5])
    assert [n for n in range(8) if not torch.equal(whole[n], context[n])] == [2, 5]
    torch.testing.assert_close(person.fuse(context, [2])[2], whole[2])  # the rest of the word is cut off
    torch.testing.assert_close(person.fuse(context, [2, 5, 6]), whole)  # the word has tokens to spare
    assert torch.equal(person.fuse(context, []), context)
    assert person.fuse(context.half(), [2]).dtype == torch.float16


@pytest.mark.parametrize("container", ["safetensors", "zip", "legacy", "bare"])
def test_photomaker_files(tmp_path: Path, container: Literal["safetensors", "zip", "legacy", "bare"]) -> None:
    tensors = files.photomaker_tensors("v2")
    if container == "bare":  # without prefixes, as stable-diffusion.cpp's repacks
        joined = tensors["id_encoder"] | tensors["lora_weights"]
        path = tiny.write(tmp_path / "x.safetensors", joined, "safetensors")
    else:
        path = tiny.write(tmp_path / "x.bin", tensors, container)
    checkpoint = formats.read(path)
    assert (checkpoint.family, checkpoint.title, checkpoint.base) == ("photomaker", "PhotoMaker v2", "sdxl")
    assert dict(checkpoint.features_width) == {"pixels": 28, "arcface-raw": 512}
    assert checkpoint.context == files.TEXT
    assert (checkpoint.combine, checkpoint.pack, checkpoint.start) == ("concatenate", "buffalo_l", 0.2)
    assert not len(checkpoint.adapter.sites) and len(checkpoint.lora) == 8 * 70
    assert checkpoint.tokens(photomaker_features(checkpoint)).cond.shape == (0, files.TEXT)
    assert not any(parameter.requires_grad for parameter in checkpoint.adapter.parameters())


def test_half_precision_weights_are_the_files_own(tmp_path: Path) -> None:
    halves = {key: value.half() for key, value in tiny.flat(files.photomaker_tensors("v2")).items()}
    checkpoint = formats.read(tiny.write(tmp_path / "x.safetensors", halves, "safetensors"))
    assert {parameter.dtype for parameter in checkpoint.adapter.parameters()} == {torch.float16}
    person = checkpoint.on_text(photomaker_features(checkpoint))
    assert person is not None
    fused = person.fuse(numbers("context", (8, files.TEXT)), range(3, 7))
    assert (fused - official("photomaker-v2")).abs().max() < 0.05


def test_a_photomaker_without_its_lora(tmp_path: Path) -> None:
    tensors = {"id_encoder": files.photomaker_tensors("v1")["id_encoder"]}
    assert not formats.read(tiny.write(tmp_path / "x.bin", tensors, "zip")).lora


def test_photomaker_refuses_other_features(tmp_path: Path) -> None:
    checkpoint = photomaker(tmp_path, "v2")
    assert checkpoint.tower is not None
    with pytest.raises(WeightsError, match="needs what its own vision tower sees"):
        checkpoint.on_text(Features())
    with pytest.raises(WeightsError, match=f"of width {files.TEXT}, but the encoder gives 14"):
        checkpoint.on_text(Features(id_embeds=torch.zeros(1, 2, 14)))
    with pytest.raises(WeightsError, match="needs raw face embeddings"):
        checkpoint.tower.embed(torch.zeros(1, 3, 28, 28), None)
    with pytest.raises(WeightsError, match="photos of width 28, but the encoder gives 14"):
        checkpoint.tower.embed(torch.zeros(1, 3, 14, 14), torch.zeros(1, 512))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_photomakers_are_told_apart_by_what_looks_at_photos(tmp_path: Path, version: Version) -> None:
    """Whatever the container, the precision, the LoRA and the fuse module."""
    encoder = files.photomaker_tensors(version)["id_encoder"]

    def kind(tensors: Mapping[str, Tensor], container: tiny.Container = "safetensors") -> str:
        path = tiny.write(tmp_path / "x.bin", {"id_encoder": dict(tensors)}, container)
        tower = photomaker_files.read_tower(open_weights(path))
        checkpoint = formats.read(path).tower
        assert checkpoint is not None and checkpoint.kind == tower.kind
        return tower.kind

    own = kind(encoder)
    assert re.fullmatch(r"photomaker/[0-9a-f]{16}", own)
    assert kind(encoder, "zip") == kind({key: value.half() for key, value in encoder.items()}) == own
    for key, same in (
        ("fuse_module.mlp1.fc1.weight", True),
        ("vision_model.encoder.layers.1.mlp.fc1.weight", False),
        ("vision_model.post_layernorm.bias", False),
        ("visual_projection.weight" if version == "v1" else "qformer_perceiver.token_norm.bias", False),
    ):
        assert (kind({**encoder, key: 1.01 * encoder[key]}) == own) is same, key
    broken = {
        **encoder,
        "vision_model.post_layernorm.bias": torch.full_like(encoder["vision_model.post_layernorm.bias"], torch.nan),
    }
    path = tiny.write(tmp_path / "x.bin", {"id_encoder": broken}, "zip")
    with pytest.raises(WeightsError, match="NaN"):
        photomaker_files.read_tower(open_weights(path))


def test_an_incomplete_photomaker(tmp_path: Path) -> None:
    tensors = files.photomaker_tensors("v2")
    del tensors["id_encoder"]["qformer_perceiver.perceiver_resampler.norm_out.bias"]
    with pytest.raises(WeightsError, match=r"identity encoder is incomplete .*norm_out\.bias"):
        formats.read(tiny.write(tmp_path / "x.bin", tensors, "zip"))


@pytest.mark.parametrize("style", ["processor", "lora", "peft"])
def test_lora_of_every_naming_finds_its_layer(style: Literal["processor", "lora", "peft"]) -> None:
    layers, given = attention_lora(files.photomaker_lora(style), "sdxl", "x.bin"), files.photomaker_lora()
    assert len(layers) == 8 * 70
    for name in site_names("sdxl"):
        width = tiny.width_of("sdxl", name.index)
        for number in (1, 2):
            own = [entry for entry in layers if entry.layer == 2 * name.index + number - 1]
            assert {entry.linear for entry in own} == {"to_q", "to_k", "to_v", "to_out"}
            key = f"unet.{name.diffusers}.attn{number}"
            for entry in own:
                assert entry.up.shape == (width, 2)
            if style == "processor":
                entry = next(entry for entry in own if entry.linear == "to_k")
                assert torch.equal(entry.down, given[f"{key}.processor.to_k_lora.down.weight"])


def test_alpha_scales_a_lora() -> None:
    tensors = files.photomaker_lora("lora")
    key = "unet.mid_block.attentions.0.transformer_blocks.3.attn2.to_q"
    plain = attention_lora(tensors, "sdxl", "x.bin")
    scaled = attention_lora({**tensors, f"{key}.alpha": torch.tensor(1.0)}, "sdxl", "x.bin")
    changed = [a.layer for a, b in zip(plain, scaled, strict=True) if not torch.equal(a.up, b.up)]
    assert changed == [2 * 63 + 1]  # ten blocks of the middle come last, 60 before them
    at = next(n for n, entry in enumerate(plain) if (entry.layer, entry.linear) == (127, "to_q"))
    torch.testing.assert_close(scaled[at].up, plain[at].up / 2)  # alpha 1, rank 2


def test_other_loras_are_refused() -> None:
    tensors = files.photomaker_lora()
    with pytest.raises(WeightsError, match=r"changes 'unet\.conv_in.*no attention layer"):
        attention_lora({**tensors, "unet.conv_in.lora.down.weight": torch.zeros(2, 2)}, "sdxl", "x.bin")
    del tensors["unet.mid_block.attentions.0.transformer_blocks.3.attn2.processor.to_q_lora.up.weight"]
    with pytest.raises(WeightsError, match="559 of 560 layers"):
        attention_lora(tensors, "sdxl", "x.bin")


# ConsistentID.


def consistentid(path: Path, base: Literal["sd15", "sdxl"]) -> Checkpoint:
    return formats.read(tiny.write(path / f"{base}.bin", files.consistentid_tensors(base), "zip"))


def consistentid_features() -> Features:
    parts, unseen = numbers("parts", (1, 5, 9, tiny.CLIP)), numbers("zeros", (1, 9, tiny.CLIP))
    parts[:, 4] = unseen  # a part that the photo does not show
    return Features(
        faceid=numbers("faceid24", (1, tiny.FACE)),
        clip_hidden=numbers("hidden", (1, 9, tiny.CLIP)),
        clip_hidden_uncond=unseen,
        clip_parts=parts,
    )


def test_consistentid_fuses_as_the_official_class(tmp_path: Path) -> None:
    person = consistentid(tmp_path, "sd15").on_text(consistentid_features())
    assert person is not None and (person.tokens, person.start) == (4, 0.6)
    fused = person.fuse(numbers("context128", (10, files.PARTS_TEXT)), [2, 4, 5, 8])
    assert_close(fused, official("consistentid-context"))


@pytest.mark.parametrize(("base", "shortcut"), [("sd15", 0), ("sdxl", 1)])
def test_consistentid_tokens_are_the_official_ones(
    tmp_path: Path, base: Literal["sd15", "sdxl"], shortcut: int
) -> None:
    checkpoint = consistentid(tmp_path, base)
    assert (checkpoint.family, checkpoint.base, checkpoint.variants) == ("consistentid", base, ())
    assert dict(checkpoint.features_width) == {"arcface": 24, "clip-hidden": 40, "clip-parts": 40}
    assert len(checkpoint.lora) == 8 * tiny.SITES[base]
    tokens = checkpoint.tokens(consistentid_features())
    assert_close(tokens.cond, official(f"consistentid-tokens-{shortcut}"))
    assert_close(tokens.uncond, official(f"consistentid-uncond-{shortcut}"))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("FacialEncoder.fuse_module.layer_norm.bias", "facial encoder is incomplete"),
        ("image_proj.norm.bias", "image projection is incomplete"),
        ("adapter_modules.31.to_k_ip.weight", "has 15 attention layers"),
    ],
)
def test_an_incomplete_consistentid(tmp_path: Path, key: str, words: str) -> None:
    tensors = files.consistentid_tensors()
    part, rest = key.split(".", 1)
    del tensors[part][rest]
    with pytest.raises(WeightsError, match=words):
        formats.read(tiny.write(tmp_path / "x.bin", tensors, "zip"))


# Personalised identities (ID-EA).


def person_of(text: int = 64) -> Personal:
    net = Personal(numbers("idea-face", (24,)), numbers("anchor", (2, text)))
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items() if key.count(".")}
    del shapes["adapter.beta"]
    net.load_state_dict(weights(shapes, "idea."), strict=False)
    return net.eval()


def test_id_ea_equals_the_official_classes() -> None:
    net = person_of()
    with torch.no_grad():
        fused = net.enhancer(net.get_buffer("faceid"), net.get_buffer("anchor"))
        assert_close(fused, official("idea-fused"))
        context = numbers("context64", (9, 64))
        assert_close(net(context), official("idea-context"))


def test_a_personal_file_keeps_the_person(tmp_path: Path) -> None:
    net = person_of()
    path = tmp_path / "ada.safetensors"
    personal.save(path, net, "sd15", "Ada", {"steps": 320})
    checkpoint = formats.read(path)
    assert (checkpoint.family, checkpoint.base, checkpoint.encoders) == ("personal", "sd15", ())
    assert checkpoint.context == 64 and checkpoint.metadata["identity"] == "Ada"
    person = checkpoint.on_text(Features())
    assert person is not None and not person.needs_word
    context = numbers("two chunks", (154, 64))
    changed = person.fuse(context, ())
    torch.testing.assert_close(changed, torch.cat([person.fuse(context[:77], ()), person.fuse(context[77:], ())]))
    assert not torch.allclose(changed, context)


def test_learned_words_are_kept_from_version_2_on(tmp_path: Path) -> None:
    path = tmp_path / "ada.safetensors"
    net = person_of()
    personal.save(path, net, "sd15", "Ada", {})
    first = formats.read(path)
    assert first.metadata["version"] == "1" and "word" not in first.metadata
    words = numbers("learned", (3, 64))
    net.learned = torch.nn.Parameter(words.clone())
    personal.save(path, net, "sd15", "Ada", {}, word="ada")
    second = formats.read(path)
    person = second.on_text(Features())
    assert second.metadata["version"] == "2" and person is not None and person.learned is not None
    assert torch.equal(person.learned, words) and not person.learned.requires_grad
    assert (person.tokens, person.word, person.needs_word) == (3, "ada", True)
    net.learned = torch.nn.Parameter(torch.zeros(64))
    personal.save(path, net, "sd15", "Ada", {})
    with pytest.raises(WeightsError, match="personalised identity"):
        formats.read(path)


def test_a_person_starts_as_nobody() -> None:
    net = Personal(numbers("idea-face", (24,)), numbers("anchor", (2, 64)))
    context = numbers("context64", (77, 64))
    assert torch.equal(net(context), context)
    net(context).square().mean().backward()
    assert net.adapter.gamma.grad is not None and net.adapter.gamma.grad.abs() > 0
    assert float(net.adapter.get_buffer("beta")) == pytest.approx(0.4)


def test_personal_files_that_cannot_be_used(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    def written(**facts: str) -> Path:
        tensors = {key: value.clone() for key, value in person_of().state_dict().items()}
        metadata = {"format": "dp_adapter_personal", "version": "1", "base": "sd15"} | facts
        save_file(tensors, str(tmp_path / "x.safetensors"), metadata=metadata)
        return tmp_path / "x.safetensors"

    with pytest.raises(WeightsError, match="version 3 of the format"):
        formats.read(written(version="3"))
    with pytest.raises(WeightsError, match="base 'flux'"):
        formats.read(written(base="flux"))
    save_file({"faceid": torch.zeros(24)}, str(tmp_path / "y.safetensors"), metadata={"format": "dp_adapter_personal"})
    with pytest.raises(WeightsError, match="personalised identity is incomplete"):
        formats.read(tmp_path / "y.safetensors")


def test_released_words_of_id_ea_are_named(tmp_path: Path) -> None:
    words = {f"<ada>_v{n}": torch.zeros(1024) for n in range(2)}
    with pytest.raises(WeightsError, match=r"words .*ID-EA.*text encoder's input"):
        formats.read(tiny.write(tmp_path / "learned_embeds.bin", words, "zip"))
