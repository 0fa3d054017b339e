"""CLIP's vision tower, for the checkpoints of the 'plus' and plain IP-Adapter families."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dp_adapter.errors import MissingDependencyError, WeightsError
from dp_adapter.identity.face import Floats
from dp_adapter.identity.pictures import Picture
from dp_adapter.identity.versions import fingerprint

if TYPE_CHECKING:
    import torch

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
EMBEDDINGS = "vision_model.embeddings."
PATCH = EMBEDDINGS + "patch_embedding.weight"
POSITIONS = EMBEDDINGS + "position_embedding.weight"
PROJECTION = "visual_projection.weight"


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


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """Of one crop.

    Args:
        image_embeds: [1, P].
        hidden: [1, tokens, W], what the last layer is given (``hidden_states[-2]``).
    """

    image_embeds: torch.Tensor
    hidden: torch.Tensor


class ClipVision:
    """A CLIP vision tower in transformers' naming, loaded at first use.

    Args:
        path: a transformers folder (its config.json is used) or one .safetensors file (sizes from the tensors).
        device, dtype: where and in which torch type it runs, e.g. ``cuda``, ``float16``.

    Raises:
        WeightsError: no such file, another naming, or not a vision tower.
    """

    def __init__(self, path: Path, device: str = "cpu", dtype: str = "float32") -> None:
        self._path = path
        self._device = device
        self._dtype = dtype
        self._files = weight_files(path)
        self.shape = read_shape(path, self._files)
        self.dim = self.shape.projection_dim
        self.kind = f"clip/{self.shape.hidden_size}x{self.shape.num_hidden_layers}x{self.dim}"
        self.name = f"{self.kind}/{path.stem}"

    @property
    def version(self) -> str:
        """Fingerprint of the weight files."""
        return fingerprint(self._files)

    @property
    def loaded(self) -> bool:
        """Whether the network is in memory."""
        return "_model" in self.__dict__

    def encode(self, crop: Picture) -> ClipFeatures:
        """Features of an RGB crop [h, w, 3]."""
        import torch

        return self._run(torch.tensor(preprocess(crop, self.shape.image_size)))

    def zeros(self) -> ClipFeatures:
        """Features of all-zero pixel values: what 'plus' checkpoints had as the unconditional picture."""
        import torch

        return self._run(torch.zeros(1, 3, self.shape.image_size, self.shape.image_size))

    def _run(self, pixel_values: torch.Tensor) -> ClipFeatures:
        import torch

        pixel_values = pixel_values.to(self._device, cast("torch.dtype", getattr(torch, self._dtype)))
        with torch.no_grad():
            output = self._model(pixel_values=pixel_values, output_hidden_states=True)
        return ClipFeatures(output.image_embeds, output.hidden_states[-2])

    @cached_property
    def _model(self) -> torch.nn.Module:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
        except ImportError:
            raise MissingDependencyError("transformers", "The CLIP picture encoder", "clip") from None
        weights: dict[str, torch.Tensor] = {}
        with torch.device("meta"):  # random initialisation of 632 M numbers takes longer than reading them
            model = CLIPVisionModelWithProjection(CLIPVisionConfig(**vars(self.shape)))
        try:
            for file in self._files:
                weights |= {key: value for key, value in load_file(str(file)).items() if _wanted(key)}
            model.load_state_dict(weights, strict=True, assign=True)
        except (SafetensorError, RuntimeError) as error:
            raise WeightsError(f"{self._path} is damaged or incomplete: {error}", "Download it again.") from error
        positions = torch.arange(self.shape.tokens)[None]  # in no file
        model.vision_model.embeddings.register_buffer("position_ids", positions, persistent=False)
        network = cast("torch.nn.Module", model)
        return network.to(self._device, cast("torch.dtype", getattr(torch, self._dtype))).eval().requires_grad_(False)


def preprocess(crop: Picture, size: int) -> Floats:
    """transformers' CLIPImageProcessor: bicubic to a short side of `size`, centre crop, CLIP's mean and deviation.

    Returns [1, 3, size, size].
    """
    from PIL import Image

    height, width = crop.shape[:2]
    short = min(height, width)
    resized = Image.fromarray(crop).resize(
        (int(size * width / short), int(size * height / short)), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    pixels = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32) / 255
    return np.moveaxis((pixels - MEAN) / STD, -1, 0)[None].astype(np.float32)


def weight_files(path: Path) -> tuple[Path, ...]:
    """The .safetensors files of a folder or the file itself.

    Raises:
        WeightsError: there is none.
    """
    files = tuple(sorted(path.glob("model*.safetensors"))) if path.is_dir() else (path,)
    if not files or not files[0].is_file() or files[0].suffix != ".safetensors":
        raise WeightsError(
            f"There is no CLIP vision tower in {path}",
            "Give a transformers folder with model.safetensors or that file.",
        )
    return files


def read_shape(path: Path, files: tuple[Path, ...]) -> ClipShape:
    """Sizes from the tensors, heads and activation from config.json where there is one.

    The tensors do not tell these two. Without a config: 16 heads from width 1024 on (L, H, g of LAION, bigG), else
    64 numbers a head; GELU above width 1024 (OpenCLIP's H and bigG), else quick GELU (OpenAI's B and L).

    Raises:
        WeightsError: the naming is not transformers', or the sizes do not fit together.
    """
    shapes = _tensor_shapes(files)
    absent = [key for key in (PATCH, POSITIONS, PROJECTION) if key not in shapes]
    if absent:
        raise WeightsError(
            f"{path} is not a CLIP vision tower in transformers' naming: it lacks {absent[0]}",
            "Use the image_encoder of h94/IP-Adapter, or another CLIPVisionModelWithProjection.",
        )
    width, _, patch, _ = shapes[PATCH]
    side = round((shapes[POSITIONS][0] - 1) ** 0.5)
    layer = "vision_model.encoder.layers."
    layers = {int(key[len(layer) :].split(".")[0]) for key in shapes if key.startswith(layer)}
    config = _vision_config(path)
    return ClipShape(
        hidden_size=width,
        intermediate_size=shapes[layer + "0.mlp.fc1.weight"][0],
        num_hidden_layers=len(layers),
        num_attention_heads=config.get("num_attention_heads", 16 if width >= 1024 else max(1, width // 64)),
        patch_size=patch,
        image_size=side * patch,
        projection_dim=shapes[PROJECTION][0],
        hidden_act=config.get("hidden_act", "gelu" if width > 1024 else "quick_gelu"),
    )


def _vision_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not (path.is_dir() and file.is_file()):
        return {}
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        config = config.get("vision_config", config)
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{file} is not a model's configuration ({error})", "Download it again.") from error
    return {"num_attention_heads": 12, "hidden_act": "quick_gelu"} | config  # transformers' defaults: files omit them


def _tensor_shapes(files: tuple[Path, ...]) -> dict[str, list[int]]:
    """Shapes by key from the files' headers: eight bytes of length, then JSON."""
    shapes: dict[str, list[int]] = {}
    for file in files:
        try:
            with file.open("rb") as stream:
                header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            shapes |= {key: header[key]["shape"] for key in header if _wanted(key)}
        except (ValueError, TypeError, KeyError, MemoryError, OverflowError) as error:
            raise WeightsError(f"{file} is damaged or not a .safetensors file", "Download it again.") from error
    return shapes


def _wanted(key: str) -> bool:
    """Vision tensors; whole CLIP files hold a text tower too, and old files a buffer of position numbers."""
    return key.startswith(("vision_model.", PROJECTION)) and not key.endswith("position_ids")
