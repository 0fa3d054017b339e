"""Files of CLIP's vision tower: .safetensors and torch's, in transformers' naming or OpenCLIP's.

sd-webui-controlnet keeps ``clip_h.pth``, ``clip_g.pth`` and ``clip_vitl.pth``: transformers' pytorch_model.bin renamed
(Mikubill/sd-webui-controlnet@56cec5b2 ``annotator/clipvision/__init__.py``). Forge keeps .safetensors in either naming
(lllyasviel/stable-diffusion-webui-forge@dfdcbab6 ``backend/patcher/clipvision.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_adapter.errors import WeightsError
from dp_adapter.user_files import is_file, read_json

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDINGS = "vision_model.embeddings."
PATCH = EMBEDDINGS + "patch_embedding.weight"
POSITIONS = EMBEDDINGS + "position_embedding.weight"
PROJECTION = "visual_projection.weight"
LAYER = "vision_model.encoder.layers."
_LARGEST = 2048  # pixels a side; public towers see 224 to 448
_MOST_HEAD = 16 * 2**20  # bytes of a .safetensors file's head; real ones have a hundredth
# mlfoundations/open_clip src/open_clip/transformer.py VisionTransformer, and OpenAI's clip/model.py, which it follows.
_SIGN = "visual.conv1.weight"
_BLOCK = "visual.transformer.resblocks."
_OUTSIDE: Mapping[str, str] = {
    "visual.class_embedding": EMBEDDINGS + "class_embedding",
    "visual.positional_embedding": POSITIONS,
    _SIGN: PATCH,
    **{f"visual.ln_pre.{name}": f"vision_model.pre_layrnorm.{name}" for name in ("weight", "bias")},
    **{f"visual.ln_post.{name}": f"vision_model.post_layernorm.{name}" for name in ("weight", "bias")},
}
_INSIDE: Mapping[str, str] = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@dataclass(frozen=True)
class ClipShape:
    """Sizes of a vision tower; field names are those of transformers' CLIPVisionConfig."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    image_size: int
    projection_dim: int
    hidden_act: str

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def weight_files(path: Path) -> tuple[Path, ...]:
    """The weight files of a transformers folder, .safetensors first, or the file itself.

    Raises:
        WeightsError: there is none.
    """
    found = (tuple(sorted(path.glob(stem))) for stem in ("model*.safetensors", "pytorch_model*.bin"))
    files = next((files for files in found if files), ()) if path.is_dir() else (path,)
    if not files or not all(map(is_file, files)):
        raise WeightsError(
            f"There is no CLIP vision tower in {path}",
            "Give a transformers folder with model.safetensors, or a weight file.",
        )
    return files


def read_weights(files: tuple[Path, ...]) -> dict[str, Tensor]:
    """The vision tower's tensors in transformers' naming.

    Raises:
        WeightsError: damaged, or holding code.
    """
    from dp_adapter.weights.files import open_weights

    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= open_weights(file).tensors
    return _rename(tensors)


def read_shape(path: Path, files: tuple[Path, ...]) -> ClipShape:
    """Sizes from the tensors, heads and activation from config.json where there is one.

    The tensors do not tell these two. Without a config: 16 heads from width 1024 on (L, H, g of LAION, bigG), else
    64 numbers a head; GELU above width 1024 (OpenCLIP's H and bigG), else quick GELU (OpenAI's B and L).

    Raises:
        WeightsError: another naming, or the sizes do not fit together.
    """
    from dp_adapter.weights.damage import refuse_damage

    with refuse_damage(path, "a CLIP vision tower"):
        return _read_shape(path, _read_outline(files))


def _read_shape(path: Path, tensors: Mapping[str, Tensor]) -> ClipShape:
    absent = [key for key in (PATCH, POSITIONS, PROJECTION, LAYER + "0.mlp.fc1.weight") if key not in tensors]
    if absent:
        raise WeightsError(
            f"{path} is not a CLIP vision tower in the naming of transformers or OpenCLIP: it lacks {absent[0]}",
            "Use the image_encoder of h94/IP-Adapter, or another CLIPVisionModelWithProjection.",
        )
    width, _, patch, _ = tensors[PATCH].shape
    positions, _ = tensors[POSITIONS].shape
    side = round((positions - 1) ** 0.5)
    if min(side, patch, width, tensors[PROJECTION].shape[0]) < 1 or side * patch > _LARGEST:
        # a photo is brought to this size before the tensors themselves are read
        problem = f"{path} is not a CLIP vision tower: it sees pictures of {side * patch} px"
        raise WeightsError(problem, "Download it again.")
    layers = {int(key[len(LAYER) :].split(".")[0]) for key in tensors if key.startswith(LAYER)}
    config = _vision_config(path)
    return ClipShape(
        hidden_size=width,
        intermediate_size=tensors[LAYER + "0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=config.get("num_attention_heads", 16 if width >= 1024 else max(1, width // 64)),
        patch_size=patch,
        image_size=side * patch,
        projection_dim=tensors[PROJECTION].shape[0],
        hidden_act=config.get("hidden_act", "gelu" if width > 1024 else "quick_gelu"),
    )


def _rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tensors in transformers' naming; whole CLIP files hold a text tower too, old ones position numbers."""
    if _SIGN in tensors:
        return _from_openclip(tensors)
    return {
        key: value
        for key, value in tensors.items()
        if key.startswith(("vision_model.", PROJECTION)) and not key.endswith("position_ids")
    }


def _from_openclip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {ours: tensors[theirs] for theirs, ours in _OUTSIDE.items() if theirs in tensors}
    if "visual.proj" in tensors:
        named[PROJECTION] = tensors["visual.proj"].t().contiguous()  # [W, P] -> [P, W]
    for key, value in tensors.items():
        if not key.startswith(_BLOCK):
            continue
        number, _, inner = key[len(_BLOCK) :].partition(".")
        if inner.startswith("attn.in_proj_"):  # [3 W, W] or [3 W]: queries, keys, values
            kind = inner.removeprefix("attn.in_proj_")
            for name, part in zip("qkv", value.chunk(3), strict=True):
                named[f"{LAYER}{number}.self_attn.{name}_proj.{kind}"] = part
        else:
            module, _, kind = inner.rpartition(".")
            named[f"{LAYER}{number}.{_INSIDE.get(module, module)}.{kind}"] = value
    return named


def _vision_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not (path.is_dir() and file.is_file()):
        return {}
    try:
        config: dict[str, Any] = read_json(file)
        config = config.get("vision_config", config)
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"{file} is not a model's configuration ({error})", "Download it again.") from error
    return {"num_attention_heads": 12, "hidden_act": "quick_gelu"} | config  # transformers' defaults: files omit them


def _read_outline(files: tuple[Path, ...]) -> dict[str, Tensor]:
    """The vision tensors without their numbers; of .safetensors files only the heads are read."""
    if any(file.suffix.lower() != ".safetensors" for file in files):
        return read_weights(files)  # mapped into memory, not read, where the container allows
    outline: dict[str, Tensor] = {}
    for file in files:
        outline |= _read_head(file)
    return _rename(outline)


def _read_head(file: Path) -> dict[str, Tensor]:
    """Tensors without numbers from a file's head: eight bytes of length, then JSON."""
    import torch

    try:
        with file.open("rb") as stream:
            length = min(int.from_bytes(stream.read(8), "little"), _MOST_HEAD)
            header: dict[str, Any] = json.loads(stream.read(length))
        shapes = {key: header[key]["shape"] for key in header if key != "__metadata__"}
        return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    except (ValueError, TypeError, KeyError, RuntimeError, MemoryError, OverflowError, OSError) as error:
        raise WeightsError(f"{file} is damaged or not a .safetensors file", "Download it again.") from error
