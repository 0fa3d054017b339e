"""TEMPORARY until the branch faces is merged."""

from __future__ import annotations

from dp_adapter.identity.detect import Detector
from dp_adapter.identity.face import Face, Floats
from dp_adapter.identity.parse import Parser
from dp_adapter.identity.pictures import Picture


class PreviewFinder:
    def __init__(self, detector: Detector, parser: Parser) -> None:
        self._detector, self._parser = detector, parser

    def faces(self, picture: Picture) -> list[Face]:
        return self._detector.detect(picture)

    def parts(self, picture: Picture, face: Face) -> dict[str, Floats]:
        return self._parser.parse(picture, face)
