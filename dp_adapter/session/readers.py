"""The whole table of readers: those of faces and of CLIP, and those of single families."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dp_adapter.errors import WeightsError
from dp_adapter.session import reading, reading_figures, reading_own, reading_parts
from dp_adapter.session.reading import Ask, Reading, Values
from dp_adapter.weights.checkpoint import Encoder

READERS: Mapping[Encoder, Callable[[Reading, Ask], Values]] = {
    **reading.READERS,
    **reading_figures.READERS,
    "clip-parts": reading_parts.read_clip_parts,
    "pixels": reading_own.read_pixels,
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
