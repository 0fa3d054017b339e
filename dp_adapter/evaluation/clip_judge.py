"""CLIP as the judge of prompts and of base preservation on real bases, through open_clip."""

from __future__ import annotations

from typing import Any, cast

from dp_adapter.errors import MissingDependencyError, SettingsError
from dp_adapter.evaluation.picture_metrics import Floats, cosine
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.naming import first_line

MODEL, WEIGHTS = "ViT-L-14", "openai"
"""FastComposer's judge (mit-han-lab/fastcomposer@b9304a2, ``single_object_evaluation.py``)."""


class ClipJudge:
    """Cosines of open_clip's embeddings.

    Args:
        model: open_clip's name of an architecture; weights: its tag, which open_clip may fetch, or a file.

    Raises:
        MissingDependencyError: open_clip is not installed.
        SettingsError: there is no such model, or its weights cannot be had.
    """

    def __init__(self, model: str = MODEL, weights: str = WEIGHTS, device: str = "cpu") -> None:
        try:
            import open_clip  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingDependencyError("open_clip_torch", "Judging prompts by CLIP", "judge") from None
        library = cast(Any, open_clip)
        try:
            made = library.create_model_and_transforms(model, pretrained=weights or None, device=device)
            self._tokenizer = library.get_tokenizer(model)
        except Exception as error:  # open_clip, its hub and torch raise many kinds
            raise SettingsError(
                "clip",
                f"open_clip cannot give {model} with '{weights}' ({first_line(error)})",
                "Name a file: --clip-weights FILE.",
            ) from error
        self._model, self._transform = made[0].eval(), made[2]
        self._device = device
        self._texts: dict[str, Floats] = {}
        self.title = f"CLIP {model} ({weights}): text-image cosine; base preservation: image-image cosine"

    def consistency(self, picture: Picture, text: str) -> tuple[float, dict[str, bool]]:
        """See `PromptJudge`."""
        return cosine(self._embed_picture(picture), self._embed_text(text)), {}

    def preservation(self, picture: Picture, base: Picture, outside: Floats) -> float | None:  # noqa: ARG002
        """See `PromptJudge`; of the whole pictures, as the protocol has it."""
        return cosine(self._embed_picture(picture), self._embed_picture(base))

    def _embed_picture(self, picture: Picture) -> Floats:
        import torch
        from PIL import Image

        with torch.no_grad():
            pixels = self._transform(Image.fromarray(picture))[None].to(self._device)
            return self._model.encode_image(pixels)[0].float().cpu().numpy()

    def _embed_text(self, text: str) -> Floats:
        import torch

        if text not in self._texts:
            with torch.no_grad():
                tokens = self._tokenizer([text]).to(self._device)
                self._texts[text] = self._model.encode_text(tokens)[0].float().cpu().numpy()
        return self._texts[text]
