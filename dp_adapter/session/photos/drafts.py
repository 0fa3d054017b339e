"""What every encoder that is here sees in the photos of a person who is being saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from dp_adapter.errors import CatalogError, MissingDependencyError, WeightsError
from dp_adapter.identity.encoders import transface
from dp_adapter.identity.encoders.clip import ClipFeatures
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.detector import Detector
from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.faces.face_embedding import Encoder
from dp_adapter.identity.faces.face_quality import quality
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.identity.saved.saved_identity import EncoderView, SavedPhoto
from dp_adapter.session.photos.reference_photos import SeenPhoto
from dp_adapter.session.readers.clip import aligned
from dp_adapter.session.readers.cut_outs import PARSED_CROP, PERSON_CROP, cut_parsed, cut_person
from dp_adapter.session.readers.eva import encoded, outlines
from dp_adapter.session.readers.face_parts import PARTS, hidden_parts
from dp_adapter.session.readers.own_tower import id_embeds
from dp_adapter.weights.checkpoint import OwnTower

_PULID = "insightface/antelopev2"
_WITHOUT_CLIP = (_PULID,)  # no checkpoint takes both, and these features are the most of a file
_FIGURES = "buffalo_l"  # the pack of StoryMaker and ConsistentID
# Widths of CLIP towers that take no such crop.
_ELSEWHERE = {PERSON_CROP: (1024, 1664), PARSED_CROP: (1280, 1664), PARTS: (1024, 1664)}
ABSENT = (CatalogError, MissingDependencyError, WeightsError)


@dataclass
class Draft:
    """What is gathered photo by photo; ``looks`` by detector, of photos that are here."""

    digest: str
    weight: float
    looks: dict[str, SeenPhoto] = field(default_factory=dict[str, "SeenPhoto"])
    vectors: dict[str, dict[str, Floats]] = field(default_factory=dict[str, "dict[str, Floats]"])

    def photo(self) -> SavedPhoto:
        views = {name: _view(look, self.vectors[name]) for name, look in self.looks.items()}
        return SavedPhoto(self.digest, self.weight, MappingProxyType(views))


def kind_of(vector: str) -> str:
    """The encoder of a vector: ``sface``, ``arcface/PACK``, ``clip/SIZES``."""
    return "/".join(vector.split("/")[:2])


def faces(drafts: Sequence[Draft], detectors: Sequence[tuple[Detector, Encoder]]) -> dict[str, str]:
    """Runs the face encoders; returns their versions by kind."""
    for draft in drafts:
        for detector, encoder in detectors:
            look = draft.looks[detector.name]
            draft.vectors[detector.name] = {encoder.name: encoder.embed(look.picture, look.face)}
    return {kind_of(encoder.name): encoder.version for _, encoder in detectors}


def towers(
    drafts: Sequence[Draft], encoders: EncoderPool, zeros: dict[str, Floats], notes: list[str]
) -> dict[str, str]:
    """Runs the CLIP towers one after the other, which fits where all together would not; returns their versions."""
    versions: dict[str, str] = {}
    cuts = [_cuts(draft, encoders) for draft in drafts]
    for tower in encoders.towers():
        try:
            zeros[tower.kind] = tower.zeros().hidden[0].cpu().float().numpy()
        except ABSENT as error:
            notes.append(f"{tower.kind} is left out: {error.problem}.")
            continue
        for draft, cut in zip(drafts, cuts, strict=True):
            for (name, crop), picture in cut.items():
                if tower.shape.hidden_size in _ELSEWHERE[crop]:
                    continue
                hidden = tower.encode(picture).hidden[0].cpu().float().numpy()
                draft.vectors[name][f"{tower.kind}/{crop}/hidden"] = hidden
            pack = encoders.pack(_FIGURES).name
            if pack in draft.looks and tower.shape.hidden_size not in _ELSEWHERE[PARTS]:
                parts = hidden_parts(draft.looks[pack], encoders.parser, tower).numpy()
                draft.vectors[pack][f"{tower.kind}/{PARTS}/hidden"] = parts
            for name, look in draft.looks.items():
                if name not in _WITHOUT_CLIP:
                    draft.vectors[name] |= _named(f"{tower.kind}/face", tower.encode(aligned(look)))
                if name == encoders.yunet.name:  # checkpoints for whole pictures look for no face of their own
                    draft.vectors[name] |= _named(f"{tower.kind}/photo", tower.encode(look.picture))
        versions[tower.kind] = tower.version
    return versions


def patches(drafts: Sequence[Draft], encoders: EncoderPool, notes: list[str]) -> dict[str, str]:
    """Runs TransFace where its file is here, on the faces that its checkpoints take; returns its version."""
    if encoders.folders.find(transface.CATALOGUE) is None:
        return {}
    try:
        network = encoders.transface()
        for draft in drafts:
            look = draft.looks[encoders.yunet.name]
            parts = encoders.parser.parse(look.picture, look.face)
            patches = network.encode(look.picture, look.face, parts)[0].numpy()
            draft.vectors[encoders.yunet.name][f"{network.kind}/patches"] = patches
        return {network.kind: network.version}
    except ABSENT as error:
        notes.append(f"TransFace is left out: {error.problem}.")
        return {}


def eva_towers(drafts: Sequence[Draft], encoders: EncoderPool, notes: list[str]) -> dict[str, str]:
    """Runs the EVA02-CLIP towers on the faces that antelopev2 framed, which PuLID takes; returns their versions."""
    if any(_PULID not in draft.looks for draft in drafts):
        return {}
    versions: dict[str, str] = {}
    for tower in encoders.eva_towers():
        try:
            for draft in drafts:
                seen = encoded(encoders, tower, draft.looks[_PULID])
                prefix = f"{tower.kind}/face"
                draft.vectors[_PULID] |= {
                    f"{prefix}/pooled": seen.pooled[0].numpy(),
                    f"{prefix}/hidden": seen.hidden[0].numpy(),
                }
        except ABSENT as error:
            notes.append(f"{tower.kind} is left out: {error.problem}.")
            continue
        versions[tower.kind] = tower.version
        notes += outlines(encoders)
    return versions


def own_towers(
    drafts: Sequence[Draft], encoders: EncoderPool, towers: Iterable[tuple[str, OwnTower]], notes: list[str]
) -> dict[str, str]:
    """Runs the towers inside checkpoints, given by the names of their files; returns their versions.

    What they saw lies with the detector whose face their checkpoint takes, the shipped one where it takes none.
    """
    versions: dict[str, str] = {}
    for file, tower in towers:
        detector = encoders.yunet.name if tower.pack is None else encoders.pack(tower.pack).name
        if any(detector not in draft.looks for draft in drafts):
            notes.append(f"{file} is left out: it also takes arcface/{tower.pack}.")
            continue
        for draft in drafts:
            vectors = draft.vectors[detector]
            face = None if tower.pack is None else torch.as_tensor(vectors[f"arcface/{tower.pack}/raw"])[None]
            vectors[f"{tower.kind}/ids"] = id_embeds(tower, draft.looks[detector], face)[0].numpy()
        versions[tower.kind] = tower.digest
    return versions


def _cuts(draft: Draft, encoders: EncoderPool) -> dict[tuple[str, str], Picture]:
    """What single families cut out, by detector and crop; each for the detector that its checkpoints take."""
    cuts: dict[tuple[str, str], Picture] = {}
    for name, look in draft.looks.items():
        if name == encoders.pack(_FIGURES).name:
            cuts[name, PERSON_CROP] = cut_person(look, encoders.parser)
        if name == encoders.yunet.name:
            cuts[name, PARSED_CROP] = cut_parsed(look, encoders.parser)
    return cuts


def _named(prefix: str, features: ClipFeatures) -> dict[str, Floats]:
    return {
        f"{prefix}/embeds": features.image_embeds[0].cpu().float().numpy(),
        f"{prefix}/hidden": features.hidden[0].cpu().float().numpy(),
    }


def _view(look: SeenPhoto, vectors: dict[str, Floats]) -> EncoderView:
    told = look.described(None)
    assert told.box is not None and told.chosen is not None
    return EncoderView(told.faces, told.chosen, told.box, quality(look.picture, look.face), MappingProxyType(vectors))
