"""Identities fused into the text, through whole generations: prompts with the person's word, and without photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dp_adapter import generation
from dp_adapter.errors import DPAdapterError
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob
from dp_adapter.identity.encoders.clip import preprocess
from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.session import Session
from dp_adapter.settings import Settings
from dp_adapter.weights.families import personal
from dp_adapter.weights.families.personal import Personal
from dp_adapter.weights.families.photomaker import PhotoMakerEncoder
from tests import tiny
from tests.hosts.pipelines import test_load_pipeline
from tests.weights import fused_files
from tests.weights.numbers import numbers, weights

sdxl_folder = test_load_pipeline.sdxl_folder
FULL = [{"kind": "full"}]
JOB = DiffusersJob("photo of a woman img in a garden", width=64, height=64, steps=3, sampler="ddim", seed=3)


def lora_of(unet: nn.Module) -> dict[str, Tensor]:
    """A LoRA on every attention of a UNet, under the public files' names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, module in unet.named_modules():
        attention, _, linear = path.removesuffix(".0").rpartition(".")
        if isinstance(module, nn.Linear) and linear in {"to_q", "to_k", "to_v", "to_out"}:
            key = f"unet.{attention}.processor.{linear}_lora"
            shapes[f"{key}.down.weight"] = (2, module.in_features)
            shapes[f"{key}.up.weight"] = (module.out_features, 2)
    return weights(shapes, "lora.")


@pytest.mark.parametrize("photos", [1, 2])
def test_photomaker_in_a_generation(
    sdxl_folder: Path, models: Path, people: list[Path], photos: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline: Any = load_pipeline.load(sdxl_folder, "cpu", "float32")
    width = pipeline.unet.config.cross_attention_dim
    encoder = weights(fused_files.photomaker_shapes("v1", width, 30), "e2e.")
    lora = lora_of(pipeline.unet)
    tiny.write(models / "dp_adapter" / "photomaker.bin", {"id_encoder": encoder, "lora_weights": lora}, "zip")
    settings = Settings.from_dict(
        {
            "references": [{"image": str(photo)} for photo in people[:photos]],
            "model": "photomaker.bin",
            "regions": FULL,
            "span": {"start": 0.0},
        }
    )
    session = Session([models], True)
    made = generation.generate(session, pipeline, settings, JOB)
    times = ", 2 times in a row" if photos == 2 else ""
    assert any(
        f"through the person word that is theirs in the prompt{times}" in one for one in made.explanation.lines()
    )

    net = session.checkpoint("photomaker.bin").adapter.projection
    assert isinstance(net, PhotoMakerEncoder)
    pixels = torch.cat([torch.as_tensor(preprocess(load_picture(photo), 28)) for photo in people[:photos]])
    embeds = net.embed(pixels, None).flatten(0, 1)
    words = " ".join(["woman"] * photos)
    plain = replace(JOB, prompt=f"photo of a {words} in a garden")
    official = type(pipeline)
    encode = official.encode_prompt
    at = 4  # behind the start, "photo of a"

    def fused(*args: Any, **kwargs: Any) -> Any:
        """What the official pipeline does with its own encoding."""
        context, *others = encode(*args, **kwargs)
        context = context.clone()
        context[0, at : at + photos] = net.fuse_module(context[0, at : at + photos], embeds)
        return (context, *others)

    for key, down in lora.items():
        if ".down." in key:
            path, linear = key.removeprefix("unet.").removesuffix("_lora.down.weight").split(".processor.")
            module = pipeline.unet.get_submodule(f"{path}.{linear}.0" if linear == "to_out" else f"{path}.{linear}")
            module.weight.data += lora[key.replace(".down.", ".up.")] @ down
    monkeypatch.setattr(official, "encode_prompt", fused)
    (expected,) = load_pipeline.run(pipeline, plain)
    assert np.abs(made.results[0].picture.astype(int) - expected).max() <= 1
    monkeypatch.undo()
    (without,) = load_pipeline.run(pipeline, plain)
    assert np.abs(without.astype(int) - expected).max() > 3


def test_photomaker_asks_for_a_person_in_the_prompt(sdxl_folder: Path, models: Path, portrait: Path) -> None:
    pipeline: Any = load_pipeline.load(sdxl_folder, "cpu", "float32")
    encoder = weights(fused_files.photomaker_shapes("v1", pipeline.unet.config.cross_attention_dim, 30), "e2e.")
    tiny.write(models / "dp_adapter" / "photomaker.bin", {"id_encoder": encoder}, "zip")
    settings = Settings.from_dict(
        {"references": [{"image": str(portrait)}], "model": "photomaker.bin", "regions": FULL}
    )
    with pytest.raises(DPAdapterError, match="word"):
        generation.generate(
            Session([models], True), pipeline, settings, DiffusersJob("a garden", width=64, height=64, steps=2)
        )


def test_a_personalised_identity_in_a_generation_without_photos(tiny_folder: Path, models: Path) -> None:
    net = Personal(numbers("face", (24,)), numbers("anchor", (2, 64)))
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items() if key.count(".")}
    del shapes["adapter.beta"]
    net.load_state_dict(weights(shapes, "e2e."), strict=False)
    personal.save(models / "dp_adapter" / "ada.safetensors", net, "sd15", "Ada", {})
    pipeline = load_pipeline.load(tiny_folder, "cpu", "float32")
    settings = Settings.from_dict({"model": "ada.safetensors", "regions": FULL, "text_side": {"weight": 1.5}})
    job = DiffusersJob("a garden", width=64, height=64, steps=3, sampler="ddim", seed=3)
    session = Session([models], True)
    made = generation.generate(session, pipeline, settings, job)
    (plain,) = load_pipeline.run(pipeline, job)
    assert np.abs(made.results[0].picture.astype(int) - plain).max() > 3
    assert any("through all words of the prompt" in line for line in made.explanation.lines())
    off = generation.generate(session, pipeline, settings.replace(weight=0.0), job)
    assert np.array_equal(off.results[0].picture, plain)
