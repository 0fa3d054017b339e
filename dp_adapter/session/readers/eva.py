"""What EVA02-CLIP sees in the grey face of a photo (PuLID)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dp_adapter.cache import Cache
from dp_adapter.identity.crops.grey_face import grey_face
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.encoders.eva import EvaFeatures, EvaVision
from dp_adapter.identity.faces.facexlib_parsing import FacexlibParser
from dp_adapter.session.photos.reference_photos import SeenPhoto

OUTLINES = (
    "The face for EVA02-CLIP was cut out by the shipped parser. PuLID was trained with facexlib's BiSeNet, whose "
    "package or weights (parsing_bisenet.pth) are not here."
)


def outlines(encoders: EncoderPool) -> tuple[str, ...]:
    """A note where the outlines of faces are not those that PuLID was trained with."""
    return () if isinstance(encoders.parser, FacexlibParser) else (OUTLINES,)


def encoded(encoders: EncoderPool, tower: EvaVision, one: SeenPhoto) -> EvaFeatures:
    """Pooled [1, c] and hidden states [1, 5, L, w] of a photo's face, in float32 on the CPU."""
    features = tower.encode(grey_face(one.picture, one.face, encoders.parser))
    return EvaFeatures(features.pooled.cpu().float(), features.hidden.cpu().float())


def kept(
    small: Cache[Tensor], large: Cache[Tensor], encoders: EncoderPool, tower: EvaVision, one: SeenPhoto
) -> tuple[Tensor, Tensor]:
    """The same, from the caches where it is there; the tower runs once for both."""
    key = (one.digest, one.treated, one.face.box.tobytes(), tower.name, encoders.parser.name)
    made: list[EvaFeatures] = []

    def part(of: Callable[[EvaFeatures], Tensor]) -> Tensor:
        if not made:
            made.append(encoded(encoders, tower, one))
        return of(made[0])

    pooled = small.get((*key, "pooled"), lambda: part(lambda features: features.pooled))
    return pooled, large.get((*key, "hidden"), lambda: part(lambda features: features.hidden))
