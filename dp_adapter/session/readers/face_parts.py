"""What CLIP sees in the parts of a face, one by one (ConsistentID)."""

from __future__ import annotations

import torch
from torch import Tensor

from dp_adapter.errors import SettingsError
from dp_adapter.identity.crops.face_parts import part_pictures
from dp_adapter.identity.encoders.clip import ClipVision
from dp_adapter.identity.faces.face_parsing import FaceParser
from dp_adapter.session.photos.reference_photos import SeenPhoto
from dp_adapter.session.photos.saved_photos import Remembered
from dp_adapter.session.readers.clip import Ask, Reading, Values, versions, zeros_of

PARTS = "parts"


def read_clip_parts(reading: Reading, ask: Ask) -> Values:
    """``clip_parts`` [1, P, L, c] of the photo with all but one part of the face black, part by part."""
    tower = reading.encoders.clip(hidden=ask.width) if any(isinstance(one, SeenPhoto) for one in ask.seen) else None
    name, kind, unseen = ("", "", None) if tower is None else (tower.name, tower.kind, zeros_of(reading, tower))
    vectors: list[Tensor] = []
    for one in ask.seen:
        if isinstance(one, Remembered):
            kind, vector = one.clip(PARTS, "hidden", ask.width)
            name = name or kind
            unseen = torch.as_tensor(one.zeros[kind])[None] if unseen is None else unseen
            parts = torch.as_tensor(vector)
            if parts.shape[1:] != unseen.shape[1:]:
                problem = f"its vectors of {name} have another size than those of a black picture"
                raise SettingsError(one.field, problem, "Save the identity again.")
        else:
            assert tower is not None and unseen is not None
            parts = _kept(reading, tower, one)
        shown = parts.flatten(1).any(1)[:, None, None]  # [P, 1, 1]
        vectors.append(torch.where(shown, parts, unseen)[None])
    of = versions(ask.seen, kind, lambda: tower.version if tower else "")
    return Values(name, {"clip_parts": vectors}, of)


def hidden_parts(one: SeenPhoto, parser: FaceParser, tower: ClipVision) -> Tensor:
    """CLIP's hidden states of every part [P, L, c], float32; zeros for a part that the photo does not show."""
    masks = parser.parse(one.picture, one.face)
    pictures = part_pictures(one.picture, one.face, masks)
    nothing = torch.zeros(tower.shape.tokens, tower.shape.hidden_size)
    return torch.stack([nothing if part is None else tower.encode(part).hidden[0].cpu().float() for part in pictures])


def _kept(reading: Reading, tower: ClipVision, one: SeenPhoto) -> Tensor:
    parser = reading.encoders.parser
    key = (one.digest, one.treated, one.face.box.tobytes(), tower.name, parser.name)
    return reading.large.get(key, lambda: hidden_parts(one, parser, tower))
