"""StoryMaker, MasterWeaver and W+ adapter files; the golden cases hold them to the official code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dp_adapter.core.adapter import TextQuerySiteAdapter
from dp_adapter.core.types import Features
from dp_adapter.errors import WeightsError
from dp_adapter.hosts.attach.sites import Base
from dp_adapter.weights import formats
from dp_adapter.weights.checkpoint import Checkpoint, RecipeOptions
from tests import tiny

MAKERS: Mapping[str, tuple[Callable[[], tiny.Nested], Base, int]] = {
    "storymaker": (tiny.storymaker_tensors, "sdxl", 12),
    "masterweaver": (tiny.masterweaver_tensors, "sd15", 4),
    "w-plus": (tiny.w_plus_tensors, "sd15", 4),
}


def read(tmp_path: Path, family: str, container: tiny.Container = "zip", name: str = "x.bin") -> Checkpoint:
    return formats.read(tiny.write(tmp_path / name, MAKERS[family][0](), container))


def features(persons: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        faceid=torch.randn(persons, tiny.FACE, generator=generator),
        clip_hidden=torch.randn(persons, 5, tiny.CLIP, generator=generator),
        clip_hidden_uncond=torch.randn(1, 5, tiny.CLIP, generator=generator),
        clip_person=torch.randn(persons, 5, tiny.CLIP, generator=generator),
        w_plus=torch.randn(persons, 18, 512, generator=generator),
    )


def one_of(several: Features, number: int) -> Features:
    kept = ("faceid", "clip_hidden", "clip_person", "w_plus")
    return replace(several, **{name: getattr(several, name)[number : number + 1] for name in kept})


@pytest.mark.parametrize("container", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("family", MAKERS)
def test_they_are_told_by_keys_in_any_container(tmp_path: Path, family: str, container: tiny.Container) -> None:
    checkpoint = read(tmp_path, family, container, "ip-adapter_sd15.safetensors")
    _, base, tokens = MAKERS[family]
    assert (checkpoint.family, checkpoint.base, checkpoint.tokens_per_photo) == (family, base, tokens)
    assert checkpoint.context == tiny.CONTEXT and len(checkpoint.adapter.sites) == tiny.SITES[base]
    assert len(checkpoint.lora) == (560 if family == "storymaker" else 0)
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in checkpoint.adapter.parameters())


def test_a_w_plus_site_has_queries(tmp_path: Path) -> None:
    checkpoint, flat = read(tmp_path, "w-plus"), tiny.flat(tiny.w_plus_tensors())
    assert checkpoint.mode == "text_query"
    for index in range(16):
        site = checkpoint.adapter.site(index)
        assert isinstance(site, TextQuerySiteAdapter)
        for name in "kvq":
            expected = flat[f"wplus_adapter.{2 * index + 1}.to_{name}_wplus.weight"]
            assert torch.equal(site.get_parameter(f"to_{name}.weight"), expected)


def test_storymaker_makes_each_person_by_themselves(tmp_path: Path) -> None:
    """So the tokens of the official joint form, person by person, are those of single persons in their places."""
    checkpoint, all_three = read(tmp_path, "storymaker"), features(3)
    joint = checkpoint.tokens(all_three)
    background, *groups = joint.cond.split(6)
    for person, group in enumerate(groups):
        alone = checkpoint.tokens(one_of(all_three, person), RecipeOptions(person=person))
        torch.testing.assert_close(alone.cond, torch.cat([background, group]))
        torch.testing.assert_close(alone.uncond, torch.cat([background, joint.uncond.split(6)[1 + person]]))
    first = checkpoint.tokens(one_of(all_three, 1), RecipeOptions(person=0)).cond
    assert not torch.allclose(first[6:], groups[1], atol=0.1), "the place counts"


def test_storymaker_knows_three_persons(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, "storymaker")
    for given, person in ((features(4), 0), (features(1), 3)):
        with pytest.raises(WeightsError, match=r"at most 3 persons; person 4 is one too many\. Use fewer"):
            checkpoint.tokens(given, RecipeOptions(person=person))


@pytest.mark.parametrize(("photos", "groups"), [(1, 3), (2, 3), (3, 3), (4, 4)])
def test_masterweaver_fills_up_to_three_photos(tmp_path: Path, photos: int, groups: int) -> None:
    tokens = read(tmp_path, "masterweaver").tokens(features(photos))
    assert tokens.cond.shape == tokens.uncond.shape == (4 * groups, tiny.CONTEXT)
    black = tokens.uncond[:4]
    assert all(torch.equal(group, black) for group in tokens.uncond.split(4))
    same = [torch.allclose(group, black, atol=1e-5) for group in tokens.cond.split(4)]
    assert same == [False] * photos + [True] * (groups - photos)


@pytest.mark.parametrize(
    ("family", "absent", "words"),
    [
        ("storymaker", "faceid", "needs face embeddings"),
        ("storymaker", "clip_hidden", "hidden states of the face"),
        ("storymaker", "clip_person", "hidden states of the person"),
        ("masterweaver", "clip_hidden", "of the parsed face"),
        ("masterweaver", "clip_hidden_uncond", "of a black picture"),
        ("w-plus", "w_plus", "needs latents of StyleGAN2"),
    ],
)
def test_missing_features_are_named(tmp_path: Path, family: str, absent: str, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        read(tmp_path, family).tokens(replace(features(1), **{absent: None}))


def narrowed(key: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda flat: flat.update({key: flat[key][:, :-1].contiguous()})


def shortened(key: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda flat: flat.update({key: flat[key][:-1].contiguous()})


BROKEN: Mapping[str, tuple[str, Callable[[dict[str, Tensor]], object], str]] = {
    "layers": ("storymaker", lambda x: x.pop("ip_adapter.139.to_k_ip.weight"), "69 attention layers; SDXL .* have 70"),
    "a V": ("storymaker", lambda x: x.pop("ip_adapter.9.to_v_ip.weight"), "layer 9 lacks a matching to_k_ip and to_v"),
    "a LoRA": ("storymaker", lambda x: x.pop("ip_adapter.8.to_q_lora.up.weight"), "LoRA has .* of 560"),
    "a norm": ("storymaker", lambda x: x.pop("image_proj_model.norm_out.bias"), "projection is incomplete.*norm_out"),
    "half a resampler": (
        "storymaker",
        lambda x: x.pop("image_proj_model.resample.layers.1.1.3.weight"),
        "projection is incomplete.*resample.layers.1.1.3",
    ),
    "final attention": (
        "masterweaver",
        lambda x: x.pop("id_encoder.final_attn.to_out.weight"),
        "projection is incomplete.*final_attn.to_out",
    ),
    "sites": ("masterweaver", lambda x: x.pop("adapter_modules.31.to_k_img.weight"), "15 attention layers; SD1.5"),
    "tokens": (
        "masterweaver",
        narrowed("adapter_modules.3.to_v_img.weight"),
        "to_v_img of layer 3 takes a width of 47",
    ),
    "widths": ("masterweaver", shortened("adapter_modules.3.to_v_img.weight"), "layer 3 lacks a matching"),
    "a query": ("w-plus", lambda x: x.pop("wplus_adapter.5.to_q_wplus.weight"), "layer 5 lacks .* to_q_wplus"),
    "a query's width": ("w-plus", narrowed("wplus_adapter.5.to_q_wplus.weight"), "to_q_wplus of layer 5 takes a width"),
    "a projection": ("w-plus", lambda x: x.pop("w_proj.proj_3.weight"), "projection is incomplete.*proj_3"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_incomplete_file_says_what_is_missing(tmp_path: Path, what: str) -> None:
    family, change, words = BROKEN[what]
    flat = dict(tiny.flat(MAKERS[family][0]()))
    change(flat)
    path = tiny.write(tmp_path / "partial.safetensors", flat, "safetensors")
    with pytest.raises(WeightsError, match=f"partial.safetensors.*{words}"):
        formats.read(path)
