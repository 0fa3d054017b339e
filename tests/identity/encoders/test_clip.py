from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp_adapter.errors import WeightsError
from dp_adapter.identity.encoders.clip import ClipVision, preprocess
from dp_adapter.identity.encoders.clip_file import read_shape, weight_files

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Saved = tuple[Any, Path]

PUBLIC = {  # width, mlp, layers, patch, positions, projection -> heads, activation (their public config.json)
    "laion ViT-H-14": ((1280, 5120, 32, 14, 257, 1024), (16, "gelu")),
    "laion ViT-bigG-14": ((1664, 8192, 48, 14, 257, 1280), (16, "gelu")),
    "openai ViT-L-14": ((1024, 4096, 24, 14, 257, 768), (16, "quick_gelu")),
    "openai ViT-L-14-336": ((1024, 4096, 24, 14, 577, 768), (16, "quick_gelu")),
    "openai ViT-B-32": ((768, 3072, 12, 32, 50, 512), (12, "quick_gelu")),
}


def header_only(path: Path, sizes: tuple[int, ...]) -> None:
    """A .safetensors file with the right header and no data."""
    width, mlp, layers, patch, positions, projection = sizes
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": [width, 3, patch, patch],
        "vision_model.embeddings.position_embedding.weight": [positions, width],
        "visual_projection.weight": [projection, width],
        **{f"vision_model.encoder.layers.{i}.mlp.fc1.weight": [mlp, width] for i in range(layers)},
    }
    header = json.dumps(
        {key: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for key, shape in shapes.items()}
    )
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())


@pytest.mark.parametrize("name", PUBLIC)
def test_public_towers_are_recognised_by_their_tensors(name: str, tmp_path: Path) -> None:
    sizes, (heads, activation) = PUBLIC[name]
    file = tmp_path / "model.safetensors"
    header_only(file, sizes)
    shape = read_shape(file, (file,))
    assert (shape.num_attention_heads, shape.hidden_act) == (heads, activation)
    assert (shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers) == sizes[:3]
    assert (shape.patch_size, shape.tokens, shape.projection_dim) == sizes[3:]


@pytest.fixture(params=[(128, "quick_gelu"), (1088, "gelu")], ids=["narrow", "wide"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Saved:
    """A random tower and the folder transformers saved it in."""
    width, activation = request.param
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=16 if width > 1024 else 2,
        patch_size=14,
        image_size=56,
        projection_dim=24,
        hidden_act=activation,
        initializer_factor=5.0,
    )
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path / "tower", safe_serialization=True)
    return model, tmp_path / "tower"


def test_folder_and_file_give_transformers_features(saved: Saved) -> None:
    model, folder = saved
    crop = np.random.default_rng(1).integers(0, 256, (70, 90, 3), np.uint8)
    pixels = torch.tensor(preprocess(crop, 56))
    with torch.no_grad():
        expected = model(pixel_values=pixels, output_hidden_states=True)
        blank = model(pixel_values=torch.zeros_like(pixels), output_hidden_states=True)
    for path in (folder, folder / "model.safetensors"):
        tower = ClipVision(path)
        assert tower.dim == 24
        features, zeros = tower.encode(crop), tower.zeros()
        assert features.image_embeds.shape == (1, 24) and features.hidden.shape == (1, 17, model.config.hidden_size)
        torch.testing.assert_close(features.image_embeds, expected.image_embeds)
        torch.testing.assert_close(features.hidden, expected.hidden_states[-2])
        torch.testing.assert_close(zeros.hidden, blank.hidden_states[-2])


def test_hidden_is_what_the_last_layer_is_given(saved: Saved) -> None:
    model, folder = saved
    given: list[Any] = []
    last = next(module for name, module in model.named_modules() if name.endswith("layers.2"))

    def keep(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.append((*positional, *named.values())[0])

    handle = last.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(pixel_values=torch.zeros(1, 3, 56, 56))
    handle.remove()
    torch.testing.assert_close(ClipVision(folder).zeros().hidden, given[0])


def test_preprocessing_is_that_of_transformers() -> None:
    module = pytest.importorskip(
        "transformers.models.clip.image_processing_pil_clip", reason="transformers 5's PIL class"
    )
    processor = module.CLIPImageProcessorPil()
    for size in ((224, 224), (300, 411), (640, 333)):
        crop = np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)
        expected = processor(crop, return_tensors="np")["pixel_values"]
        assert np.abs(preprocess(crop, 224) - np.asarray(expected)).max() < 1e-5


def test_text_tower_and_position_buffer_in_the_file_do_not_matter(saved: Saved, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _, folder = saved
    tensors = load_file(str(folder / "model.safetensors"))
    extra = {
        "text_model.x": torch.ones(2),
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
        "logit_scale": torch.ones(1),
    }
    save_file({**{key: value.half() for key, value in tensors.items()}, **extra}, str(tmp_path / "whole.safetensors"))
    hidden = ClipVision(tmp_path / "whole.safetensors").zeros().hidden
    reference = ClipVision(folder).zeros().hidden
    assert hidden.dtype == torch.float32
    assert float((hidden - reference).norm() / reference.norm()) < 0.01


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(WeightsError, match="no CLIP vision tower in"):
        weight_files(tmp_path)
    save_file({"visual.conv1.weight": torch.ones(2)}, str(tmp_path / "openclip.safetensors"))
    with pytest.raises(WeightsError, match="naming of transformers or OpenCLIP: it lacks vision_model"):
        ClipVision(tmp_path / "openclip.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(WeightsError, match="damaged"):
        ClipVision(tmp_path / "broken.safetensors")
