"""CLIP's vision tower, for the checkpoints of the 'plus' and plain IP-Adapter families."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from dp_adapter.errors import MissingDependencyError
from dp_adapter.identity.encoders.clip_file import read_shape, read_weights, weight_files
from dp_adapter.identity.encoders.encoder_device import EncoderDevice, LazyNetwork
from dp_adapter.identity.encoders.encoder_versions import fingerprint
from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.pictures.picture_files import Picture

if TYPE_CHECKING:
    import torch

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


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
    """A CLIP vision tower, loaded at first use.

    Args:
        path: a transformers folder (its config.json is used) or one weight file (sizes from the tensors).
        placement: where it runs; on the CPU when None.

    Raises:
        WeightsError: no such file, another naming, or not a vision tower.
    """

    def __init__(self, path: Path, placement: EncoderDevice | None = None) -> None:
        self._path = path
        self._files = weight_files(path)
        self.shape = read_shape(path, self._files)
        self.dim = self.shape.projection_dim
        self.kind = f"clip/{self.shape.hidden_size}x{self.shape.num_hidden_layers}x{self.dim}"
        self.name = f"{self.kind}/{path.stem}"
        place = placement or EncoderDevice()
        self._network = LazyNetwork(self.name, self._build, place, half=place.half)

    @property
    def version(self) -> str:
        """Fingerprint of the weight files."""
        return fingerprint(self._files)

    @property
    def loaded(self) -> bool:
        """Whether the network is in memory."""
        return self._network.loaded

    def encode(self, crop: Picture) -> ClipFeatures:
        """Features of an RGB crop [h, w, 3]."""
        import torch

        return self._run(torch.tensor(preprocess(crop, self.shape.image_size)))

    def zeros(self) -> ClipFeatures:
        """Features of all-zero pixel values: what 'plus' checkpoints had as the unconditional picture."""
        import torch

        return self._run(torch.zeros(1, 3, self.shape.image_size, self.shape.image_size))

    def _run(self, pixel_values: torch.Tensor) -> ClipFeatures:
        return ClipFeatures(*self._network.run(pixel_values, _features))

    def _build(self) -> torch.nn.Module:
        import torch

        try:
            from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
        except ImportError:
            raise MissingDependencyError("transformers", "The CLIP picture encoder", "clip") from None
        from dp_adapter.weights.damage import refuse_damage, require_plain

        with refuse_damage(self._path, "a CLIP vision tower"):
            with torch.device("meta"):  # random initialisation of 632 M numbers takes longer than reading them
                model = CLIPVisionModelWithProjection(CLIPVisionConfig(**vars(self.shape)))
            # In no file; older transformers, as A1111 has them, would ask the file for it.
            positions = torch.arange(self.shape.tokens)[None]
            model.vision_model.embeddings.register_buffer("position_ids", positions, persistent=False)
            weights = read_weights(self._files)
            require_plain(self._path, weights)
            model.load_state_dict(weights, strict=True, assign=True)
        return cast("torch.nn.Module", model)


def _features(network: torch.nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    output = network(pixel_values=pixel_values, output_hidden_states=True)
    return output.image_embeds, output.hidden_states[-2]


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
