"""What each encoder sees in the photos of a person: readers of faces and of CLIP. ``readers`` has the whole table.

A photo of a saved identity brings its vectors along; only photos that are here are encoded, and kept by content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dp_adapter.cache import Cache
from dp_adapter.identity.encoders.clip import ClipFeatures, ClipVision
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.encoders.transface import TransFace
from dp_adapter.identity.faces.face import norm_crop
from dp_adapter.identity.faces.face_embedding import Encoder as FaceEncoder
from dp_adapter.identity.pictures.picture_files import Picture, digest
from dp_adapter.session.photos.latents import Latent
from dp_adapter.session.photos.reference_photos import Known, SeenPhoto
from dp_adapter.session.photos.saved_photos import Remembered
from dp_adapter.session.readers import eva
from dp_adapter.weights.checkpoint import Checkpoint, Encoder

Part = Literal["embeds", "hidden"]
Crop = Literal["face", "photo"]
_CROP = 224  # what CLIP takes, and what the face variants were trained on
_WHOLE_PICTURE = {"ip-adapter", "plus", "composition", "mip-adapter", "mip-adapter-plus", "consistentid"}


@dataclass(frozen=True)
class Ask:
    """What is asked of a reader.

    Attributes:
        need: the encoder, as the checkpoint names it.
        variant: which of the families that share the checkpoint's keys it is.
        latents: what is given in place of photos, for W+ adapters.
    """

    need: Encoder
    seen: Sequence[Known]
    checkpoint: Checkpoint
    variant: str
    latents: Sequence[Latent] = ()

    @property
    def width(self) -> int:
        """Of the vectors that the checkpoint takes from this encoder."""
        return self.checkpoint.features_width[self.need]

    @property
    def pack(self) -> str:
        """The insightface pack whose networks the checkpoint was trained on."""
        return pack_of(self.checkpoint, self.variant)


@dataclass(frozen=True)
class Values:
    """What one encoder saw in every photo.

    Attributes:
        name: of the encoder.
        fields: by field of ``Features`` one tensor [1, ...] per photo.
        constants: by field what is the same for all photos.
        versions: of the encoder's file; more than one where saved vectors come from another.
        notes: in words, what a user should know of how it saw them.
    """

    name: str
    fields: Mapping[str, list[Tensor]]
    versions: tuple[str, ...] = ()
    constants: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    notes: tuple[str, ...] = ()

    def doubts(self) -> list[str]:
        if len(self.versions) < 2:
            return [*self.notes]
        return [
            *self.notes,
            f"The vectors of {self.name} come from different files of it. If these are different networks, save the "
            "identity again.",
        ]


@dataclass(frozen=True)
class Reading:
    """The encoders, and what they saw already: tensors by content and encoder; ``large`` are some 12 MB each."""

    encoders: EncoderPool
    kept: Cache[Tensor]
    large: Cache[Tensor] = field(default_factory=lambda: Cache[Tensor](32))

    def forget(self) -> None:
        self.kept.clear()
        self.large.clear()


def read_faces(reading: Reading, ask: Ask) -> Values:
    """``faceid`` [1, e] of a face encoder: ArcFace as the checkpoint wants it, or SFace."""
    encoder: FaceEncoder = reading.encoders.sface
    if ask.need != "sface":
        encoder = reading.encoders.arcface(ask.pack, normed=ask.need == "arcface")
    kind = encoder.name.removesuffix("/normed").removesuffix("/raw")
    vectors = [
        torch.as_tensor(one.face(encoder.name))[None]
        if isinstance(one, Remembered)
        else face_vector(reading, encoder, one)
        for one in ask.seen
    ]
    return Values(encoder.name, {"faceid": vectors}, versions(ask.seen, kind, lambda: encoder.version))


def read_clip_embeds(reading: Reading, ask: Ask) -> Values:
    """``image_embeds`` [1, c] of the tower that has this projection width."""
    name, vectors, seen_versions, _ = read_clip(reading, ask, _crop_of(ask), "embeds")
    return Values(name, {"image_embeds": vectors}, seen_versions)


def read_clip_hidden(reading: Reading, ask: Ask) -> Values:
    """``clip_hidden`` [1, L, c] of the tower that has this width, and of a black picture."""
    name, vectors, seen_versions, zeros = read_clip(reading, ask, _crop_of(ask), "hidden")
    assert zeros is not None
    return Values(name, {"clip_hidden": vectors}, seen_versions, {"clip_hidden_uncond": zeros})


def read_transface(reading: Reading, ask: Ask) -> Values:
    """``face_patches`` [1, L, c] of TransFace; it and the parser are only asked where a photo is here."""
    here = any(isinstance(one, SeenPhoto) for one in ask.seen)
    network = reading.encoders.transface() if here else None
    name = kind = "" if network is None else network.kind
    vectors: list[Tensor] = []
    for one in ask.seen:
        if isinstance(one, Remembered):
            kind, vector = one.patches(ask.width)
            name = name or kind
            vectors.append(torch.as_tensor(vector)[None])
        else:
            assert network is not None
            vectors.append(_patches(reading, network, one))
    return Values(name, {"face_patches": vectors}, versions(ask.seen, kind, lambda: network.version if network else ""))


def read_eva(reading: Reading, ask: Ask) -> Values:
    """``eva_pooled`` [1, c] and ``eva_hidden`` [1, 5, L, w] of the tower whose hidden states have this width."""
    tower = reading.encoders.eva(ask.width) if any(isinstance(one, SeenPhoto) for one in ask.seen) else None
    name, kind = ("", "") if tower is None else (tower.name, tower.kind)
    pooled: list[Tensor] = []
    hidden: list[Tensor] = []
    for one in ask.seen:
        if isinstance(one, Remembered):
            kind, *saved = one.eva(ask.width)
            name = name or kind
            whole, states = (torch.as_tensor(vector)[None] for vector in saved)
        else:
            assert tower is not None
            whole, states = eva.kept(reading.kept, reading.large, reading.encoders, tower, one)
        pooled.append(whole)
        hidden.append(states)
    notes = () if tower is None else eva.outlines(reading.encoders)
    of = versions(ask.seen, kind, lambda: tower.version if tower else "")
    return Values(name, {"eva_pooled": pooled, "eva_hidden": hidden}, of, notes=notes)


READERS: Mapping[Encoder, Callable[[Reading, Ask], Values]] = {
    "arcface": read_faces,
    "arcface-raw": read_faces,
    "sface": read_faces,
    "clip-embeds": read_clip_embeds,
    "clip-hidden": read_clip_hidden,
    "transface": read_transface,
    "eva": read_eva,
}


def pack_of(checkpoint: Checkpoint, variant: str) -> str:
    """InstantID shares its keys with a FaceID checkpoint, but was trained on another pack."""
    return "antelopev2" if variant == "instantid" else checkpoint.pack


def aligned(one: SeenPhoto) -> Picture:
    """The chosen face as CLIP's face variants take it."""
    return norm_crop(one.picture, one.face.points, _CROP)


def _whole(one: SeenPhoto) -> Picture:
    return one.picture


_CROPS: Mapping[str, Callable[[SeenPhoto], Picture]] = {"face": aligned, "photo": _whole}


def read_clip(
    reading: Reading, ask: Ask, crop: str, part: Part, make: Callable[[SeenPhoto], Picture] | None = None
) -> tuple[str, list[Tensor], tuple[str, ...], Tensor | None]:
    """``part`` of CLIP's features of a crop of every photo; the tower is only asked where a photo is here.

    Args:
        crop: its name, under which saved identities keep the vectors; make: cuts it out of a photo.

    Returns:
        The tower's name, a tensor [1, ...] per photo, versions, and ``hidden`` of a black picture [1, L, c].
    """
    cut = make or _CROPS[crop]
    tower = None
    if any(isinstance(one, SeenPhoto) for one in ask.seen):
        tower = reading.encoders.clip(**{"projection" if part == "embeds" else "hidden": ask.width})
    name, kind = ("", "") if tower is None else (tower.name, tower.kind)
    zeros = None if tower is None or part == "embeds" else zeros_of(reading, tower)
    vectors: list[Tensor] = []
    for one in ask.seen:
        if isinstance(one, Remembered):
            kind, vector = one.clip(crop, part, ask.width)
            name = name or kind
            zeros = torch.as_tensor(one.zeros[kind])[None] if zeros is None else zeros
            vectors.append(torch.as_tensor(vector)[None])
        else:
            assert tower is not None
            vectors.append(_clip(reading, tower, cut(one), part))
    return name, vectors, versions(ask.seen, kind, lambda: tower.version if tower else ""), zeros


def versions(seen: Sequence[Known], kind: str, live: Callable[[], str]) -> tuple[str, ...]:
    """Versions of the encoder that the vectors come from; looked up only where there can be more than one."""
    saved = {one.versions.get(kind, "") for one in seen if isinstance(one, Remembered)}
    mixed = saved and any(isinstance(one, SeenPhoto) for one in seen)
    return tuple(sorted(saved | ({live()} if mixed else set())))


def _crop_of(ask: Ask) -> Crop:
    """The aligned face, or the whole photo for the variants that were trained on whole pictures."""
    return "photo" if ask.variant in _WHOLE_PICTURE or ask.checkpoint.family in _WHOLE_PICTURE else "face"


def face_vector(reading: Reading, encoder: FaceEncoder, one: SeenPhoto) -> Tensor:
    """[1, e] of the chosen face."""
    key = (one.digest, one.treated, one.face.box.tobytes(), encoder.name)
    return reading.kept.get(key, lambda: torch.as_tensor(encoder.embed(one.picture, one.face)).float()[None])


def _patches(reading: Reading, network: TransFace, one: SeenPhoto) -> Tensor:
    parser = reading.encoders.parser
    key = (one.digest, one.treated, one.face.box.tobytes(), network.name, parser.name)
    return reading.kept.get(key, lambda: network.encode(one.picture, one.face, parser.parse(one.picture, one.face)))


def _clip(reading: Reading, tower: ClipVision, crop: Picture, part: Part) -> Tensor:
    key = (digest(crop), tower.name, part)
    return reading.kept.get(key, lambda: _part(tower.encode(crop), part).cpu().float())


def zeros_of(reading: Reading, tower: ClipVision) -> Tensor:
    """CLIP's hidden states [1, L, c] of a black picture."""
    return reading.kept.get(("zeros", tower.name), lambda: tower.zeros().hidden.cpu().float())


def _part(features: ClipFeatures, part: Part) -> Tensor:
    return features.image_embeds if part == "embeds" else features.hidden
