"""The reader of CLIP, and the crops of a photo that it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dp_adapter.errors import SettingsError
from dp_adapter.hints import command
from dp_adapter.identity.crops.face_parts import part_pictures
from dp_adapter.identity.crops.face_without_background import crop_parsed_face
from dp_adapter.identity.crops.person_cut_out import cut_out_person
from dp_adapter.identity.encoders.clip import ClipVision
from dp_adapter.identity.faces.face import norm_crop
from dp_adapter.identity.faces.face_parsing import FaceParser
from dp_adapter.identity.pictures.picture_files import Picture, digest
from dp_adapter.session.photos.reference_photos import Known, SeenPhoto
from dp_adapter.session.photos.saved_photos import SavedReference
from dp_adapter.session.readers.draft import ABSENT, Draft
from dp_adapter.session.readers.reader import CachedEncoders, EncoderOutput, PhotoVectors, Reader, face_key
from dp_adapter.weights.checkpoint import Encoder

Part = Literal["embeds", "hidden"]
_SIDE = 224  # what CLIP takes, and what the face variants were trained on
_SHIPPED, _BUFFALO = "yunet", "insightface/buffalo_l"
_UNCOND = "clip_hidden_uncond"


@dataclass(frozen=True)
class ClipCrop:
    """What CLIP is shown of a photo.

    Attributes:
        cut: makes it of a photo; None for the parts of the face, which are several pictures.
        detectors: whose faces are saved: those of the checkpoints that take this crop.
        outputs: of CLIP, that are saved.
        unused: hidden widths of towers whose checkpoints take no such crop.
        title: of what files that were saved before there was this crop lack.
    """

    cut: Callable[[CachedEncoders, SeenPhoto], Picture] | None
    detectors: tuple[str, ...]
    outputs: tuple[Part, ...] = ("hidden",)
    unused: tuple[int, ...] = ()
    title: str = ""


def cut_face(_encoders: CachedEncoders, photo: SeenPhoto) -> Picture:
    """The chosen face, aligned, as CLIP's face variants take it."""
    return norm_crop(photo.picture, photo.face.points, _SIDE)


def cut_person(encoders: CachedEncoders, photo: SeenPhoto) -> Picture:
    """The person of the chosen face, as StoryMaker takes them."""
    return _cut_once(
        encoders, photo, "person", lambda parser: cut_out_person(photo.picture, photo.face, photo.faces, parser)
    )


def cut_parsed(encoders: CachedEncoders, photo: SeenPhoto) -> Picture:
    """The chosen face without its background, as MasterWeaver takes it."""
    return _cut_once(encoders, photo, "parsed", lambda parser: crop_parsed_face(photo.picture, photo.face, parser))


# No checkpoint takes CLIP's features of the faces that antelopev2 frames, and these are the most of a file.
CROPS: Mapping[str, ClipCrop] = {
    "face": ClipCrop(cut_face, (_SHIPPED, _BUFFALO), ("embeds", "hidden")),
    "photo": ClipCrop(lambda _, photo: photo.picture, (_SHIPPED,), ("embeds", "hidden")),
    "person": ClipCrop(cut_person, (_BUFFALO,), unused=(1024, 1664), title="the cut-out person"),
    "parsed": ClipCrop(cut_parsed, (_SHIPPED,), unused=(1280, 1664), title="the face without its background"),
    "parts": ClipCrop(None, (_BUFFALO,), unused=(1024, 1664), title="the parts of the face"),
}


class _Use(NamedTuple):
    """The field of ``Features`` that CLIP's output goes to; the crop where the encoder's name says it."""

    field: str
    output: Part = "hidden"
    crop: str = ""


_USES: Mapping[Encoder, _Use] = {
    "clip-embeds": _Use("image_embeds", "embeds"),  # [1, c]
    "clip-hidden": _Use("clip_hidden"),  # [1, L, c], as all below
    "clip-person": _Use("clip_person", crop="person"),
    "clip-parsed": _Use("clip_hidden", crop="parsed"),
    "clip-parts": _Use("clip_parts", crop="parts"),  # but this: [1, P, L, c] of the photo with one part of the face
}


class ClipReader(Reader[ClipVision]):
    """A field of ``Features`` that is CLIP's, of one crop, and for ``clip_hidden`` also that of a black picture."""

    @property
    def use(self) -> _Use:
        return _USES[self.need.encoder]

    @property
    def crop(self) -> str:
        """The aligned face, or the whole photo for the variants that were trained on whole pictures."""
        return self.use.crop or self.need.checkpoint.variant(self.need.variant).crop

    def find(self) -> ClipVision:
        return self.encoders.pool.clip(**{"projection" if self.use.output == "embeds" else "hidden": self.need.width})

    def live(self, photo: SeenPhoto) -> PhotoVectors:
        vector = _encode_once(self.encoders, self.network, self.crop, photo, self.use.output)
        return self._vectors(self.network.name, vector, lambda: _zeros(self.encoders, self.network))

    def saved(self, photo: SavedReference) -> PhotoVectors:
        output, width, title = self.use.output, self.need.width, CROPS[self.crop].title
        found = photo.view.find("clip/", f"/{self.crop}/{output}", width)
        if found is None and title and photo.view.find("clip/", f"/face/{output}", width) is not None:
            problem = f"the saved identity '{photo.saved.name}' has no vectors of {title}, which this model takes"
            raise SettingsError(photo.field, problem, "Save the identity again from its photos.")
        if found is None or found[0] not in photo.saved.zeros:
            which = f"{'projection' if output == 'embeds' else 'hidden'} width {width}"
            hint = f"Put that encoder into models/clip_vision ({command('models get clip-vit-h')})"
            raise photo.lacking(f"a CLIP vision encoder with {which}", hint)
        tower, vector = found
        return self._vectors(tower, torch.as_tensor(vector), lambda: torch.as_tensor(photo.saved.zeros[tower])[None])

    @classmethod
    def store(cls, draft: Draft, encoders: CachedEncoders) -> None:
        for tower in encoders.pool.towers():
            try:
                draft.zeros[tower.kind] = tower.zeros().hidden[0].numpy()
            except ABSENT as error:
                draft.leave_out(tower.kind, error)
                continue
            for detector, photo, vectors in draft.faces():
                for name, crop in CROPS.items():
                    if detector in crop.detectors and tower.shape.hidden_size not in crop.unused:
                        seen = _encode(encoders, tower, name, photo)
                        vectors |= {f"{tower.kind}/{name}/{part}": seen[part].numpy() for part in crop.outputs}
            draft.versions[tower.kind] = tower.version

    def version(self) -> str:
        return self.network.version

    def read(self, photos: Sequence[Known]) -> EncoderOutput:
        output = super().read(photos)
        return output if self.use.field != "clip_parts" else _without_absent_parts(output, photos)

    def _vectors(self, tower: str, vector: Tensor, zeros: Callable[[], Tensor]) -> PhotoVectors:
        uncond = {_UNCOND: zeros()} if self.use.field in {"clip_hidden", "clip_parts"} else {}
        return PhotoVectors(tower, {self.use.field: vector[None]}, uncond)


def _without_absent_parts(output: EncoderOutput, photos: Sequence[Known]) -> EncoderOutput:
    """``clip_parts`` with what CLIP sees in a black picture for the parts that a photo does not show, zeros till then.

    Raises:
        SettingsError: saved vectors are not of this tower.
    """
    black = output.constants[_UNCOND]  # [1, L, c]
    parts: list[Tensor] = []
    for photo, vectors in zip(photos, output.fields["clip_parts"], strict=True):
        if isinstance(photo, SavedReference) and vectors.shape[2:] != black.shape[1:]:
            problem = f"its vectors of {output.encoder} have another size than those of a black picture"
            raise SettingsError(photo.field, problem, "Save the identity again.")
        shown = vectors.flatten(2).any(2)[..., None, None]  # [1, P, 1, 1]
        parts.append(torch.where(shown, vectors, black))
    return replace(output, fields={"clip_parts": parts}, constants={})


def _encode(encoders: CachedEncoders, tower: ClipVision, crop: str, photo: SeenPhoto) -> dict[Part, Tensor]:
    """``embeds`` [P] and ``hidden`` [L, c] of a crop; of the parts of the face ``hidden`` [P, L, c] alone."""
    cut = CROPS[crop].cut
    if cut is None:
        return {"hidden": _encode_parts(encoders.pool.parser, tower, photo)}
    features = tower.encode(cut(encoders, photo))
    return {"embeds": features.image_embeds[0], "hidden": features.hidden[0]}


def _encode_parts(parser: FaceParser, tower: ClipVision, photo: SeenPhoto) -> Tensor:
    """CLIP's hidden states of every part of the face [P, L, c]; zeros for a part that the photo does not show."""
    pictures = part_pictures(photo.picture, photo.face, parser.parse(photo.picture, photo.face))
    nothing = torch.zeros(tower.shape.tokens, tower.shape.hidden_size)
    return torch.stack([nothing if part is None else tower.encode(part).hidden[0] for part in pictures])


def _encode_once(encoders: CachedEncoders, tower: ClipVision, crop: str, photo: SeenPhoto, part: Part) -> Tensor:
    """One of `_encode`, from the cache where it is there."""
    cut = CROPS[crop].cut
    if cut is None:
        key, cache = (*face_key(photo), tower.name, encoders.pool.parser.name), encoders.large
    else:
        key, cache = (digest(cut(encoders, photo)), tower.name, part), encoders.small
    return cache.get(key, lambda: _encode(encoders, tower, crop, photo)[part])


def _zeros(encoders: CachedEncoders, tower: ClipVision) -> Tensor:
    """CLIP's hidden states [1, L, c] of a black picture."""
    return encoders.small.get(("zeros", tower.name), lambda: tower.zeros().hidden)


def _cut_once(encoders: CachedEncoders, photo: SeenPhoto, crop: str, cut: Callable[[FaceParser], Picture]) -> Picture:
    """A crop from the cache where it is there: parsing takes longer than looking it up."""
    parser = encoders.pool.parser
    key = (*face_key(photo), parser.name, crop)
    return np.asarray(encoders.small.get(key, lambda: torch.as_tensor(cut(parser))), np.uint8)
