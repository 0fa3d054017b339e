"""FaceID's LoRA acts once, wherever it is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from safetensors.torch import save_file

from dp_adapter.core.adapter import LowRank
from dp_adapter.core.injection import Identity, Injection
from dp_adapter.session import Prepared
from dp_adapter.session.explanation import Explanation
from dp_adapter.webui.job import duplicate_lora
from dp_adapter.weights import formats
from dp_adapter.weights.duplicate_lora import is_same
from tests import tiny

FIRST = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def lora(tmp_path: Path) -> tuple[LowRank, ...]:
    return formats.read(tiny.write(tmp_path / "faceid.bin", tiny.family_tensors("faceid"), "zip")).lora


@pytest.fixture
def folder(tmp_path: Path, lora: tuple[LowRank, ...], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's LoRA folder with FaceID's own under another name, and somebody else's."""
    first = next(one for one in lora if one.layer == 0 and one.linear == "to_q")
    for name, factor in (("mine", 1), ("other", 2)):
        pair = {f"{FIRST}.lora_down.weight": first.down * factor, f"{FIRST}.lora_up.weight": first.up}
        save_file({key: value.contiguous() for key, value in pair.items()}, str(tmp_path / f"{name}.safetensors"))
    networks = ModuleType("networks")
    names = ("mine", "other", "gone")
    vars(networks)["available_networks"] = {
        name: SimpleNamespace(filename=str(tmp_path / f"{name}.safetensors")) for name in names
    }
    monkeypatch.setitem(sys.modules, "networks", networks)
    return tmp_path


def prepared(lora: tuple[LowRank, ...]) -> Prepared:
    identity = Identity(tiny.adapter("sd15", 3), tiny.tokens())
    return Prepared(Injection((identity,), lora=tuple((one, 0.7) for one in lora)), Explanation(active=True, lora=0.7))


def test_the_same_numbers_are_told_from_others(folder: Path, lora: tuple[LowRank, ...]) -> None:
    assert is_same(folder / "mine.safetensors", lora)
    assert not is_same(folder / "other.safetensors", lora)
    assert not is_same(folder / "gone.safetensors", lora)
    assert not is_same(folder / "mine.safetensors", ())


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("where", ["all_prompts", "all_hr_prompts"])
def test_a_prompt_that_has_it_keeps_the_models_own_out(lora: tuple[LowRank, ...], where: str) -> None:
    job = SimpleNamespace(**{"all_prompts": ["a man"], where: ["a man <lora:other:1>, <lora:mine:0.6>"]})
    changed, note = duplicate_lora.drop_duplicate(job, prepared(lora))
    assert changed.injection.lora == () and changed.explanation.lora == 0.0
    assert "'mine'" in note


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("prompt", ["a man", "a man <lora:other:1>", "<lora:unknown:1> <lora:gone:1>"])
def test_other_loras_change_nothing(lora: tuple[LowRank, ...], prompt: str) -> None:
    before = prepared(lora)
    assert duplicate_lora.drop_duplicate(SimpleNamespace(all_prompts=[prompt]), before) == (before, "")
