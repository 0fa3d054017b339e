"""What the model list says about files, by keys and shapes only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dp_adapter.errors import WeightsError
from dp_adapter.session.model_list import ModelListing
from dp_adapter.weights.library import Library
from tests import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "dp_adapter"
    made.mkdir()
    tiny.write(made / "b-faceid.safetensors", tiny.family_tensors("faceid"), "safetensors")
    tiny.write(made / "A-plus.bin", tiny.family_tensors("faceid-plus"), "zip")
    tiny.write(made / "0-sdxl.pt", tiny.family_tensors("faceid", "sdxl"), "legacy")
    tiny.write(made / "0-lora.safetensors", {"lora_unet_x.lora_up.weight": torch.zeros(1)}, "safetensors")
    return made


@pytest.fixture
def models(folder: Path) -> ModelListing:
    return ModelListing(Library([folder.parent], paths_allowed=False))


def test_what_fits_comes_first_and_the_rest_says_why(models: ModelListing) -> None:
    assert [(facts.name, facts.misfit("sd15")) for facts in models.listed("sd15")] == [
        ("A-plus.bin", ""),
        ("b-faceid.safetensors", ""),
        ("0-sdxl.pt", "for SDXL"),
        ("0-lora.safetensors", "cannot be used"),
    ]
    assert models.listed("sdxl")[0].name == "0-sdxl.pt"
    assert [facts.misfit(None) for facts in models.listed(None)] == ["", "", "", "cannot be used"]
    assert "LoRA" in models.facts("0-lora.safetensors").problem


def test_a_file_is_looked_into_once_while_it_stays_the_same(models: ModelListing, folder: Path) -> None:
    (first, *_) = models.listed("sdxl")
    assert models.listed("sdxl")[0] is first
    tiny.write(folder / "0-sdxl.pt", tiny.family_tensors("faceid"), "zip")
    assert models.facts("0-sdxl.pt").misfit("sdxl") == "for SD1.5"


def test_the_question_about_a_variant_is_asked_until_it_is_answered(models: ModelListing, folder: Path) -> None:
    library = Library([folder.parent], paths_allowed=False)
    assert models.facts("b-faceid").question == ()
    assert set(models.facts("A-plus.bin").question) == {"faceid-plus", "faceid-plusv2"}
    library.remember(folder / "A-plus.bin", "faceid-plus")
    facts = models.facts("A-plus.bin")
    assert (facts.question, facts.answer) == ((), "faceid-plus")
    with pytest.raises(WeightsError, match="no model 'nobody'"):
        models.facts("nobody")


def test_other_files_in_shared_folders_are_passed_over(models: ModelListing, folder: Path) -> None:
    shared = folder.parent / "ControlNet"
    shared.mkdir()
    tiny.write(shared / "canny.safetensors", {"control_model.x": torch.zeros(1)}, "safetensors")
    (shared / "half.safetensors").write_bytes(b"nothing")
    tiny.write(shared / "z-faceid.safetensors", tiny.family_tensors("faceid"), "safetensors")
    assert [facts.name for facts in models.listed("sd15") if facts.name not in {p.name for p in folder.iterdir()}] == [
        "z-faceid.safetensors"
    ]
