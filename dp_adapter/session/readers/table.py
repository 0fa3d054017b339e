"""The whole table of readers: those of faces and of CLIP, and those of single families."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dp_adapter.errors import WeightsError
from dp_adapter.session.readers import clip, cut_outs, face_parts, own_tower
from dp_adapter.session.readers.clip import Ask, Reading, Values
from dp_adapter.weights.checkpoint import Encoder

READERS: Mapping[Encoder, Callable[[Reading, Ask], Values]] = {
    **clip.READERS,
    **cut_outs.READERS,
    "clip-parts": face_parts.read_clip_parts,
    "pixels": own_tower.read_pixels,
}


def read(known: Reading, ask: Ask) -> Values:
    """Asks the reader of an encoder.

    Raises:
        CatalogError, MissingDependencyError: the encoder is not here.
        SettingsError: a saved identity lacks its vectors.
        WeightsError: there is no reader for it.
    """
    reader = READERS.get(ask.need)
    if reader is None:
        raise WeightsError(f"{ask.checkpoint.title} needs the encoder '{ask.need}', which is not supported yet")
    return reader(known, ask)
