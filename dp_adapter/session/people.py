"""The photos of a request → a saved identity, as seen by every encoder that is here."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import MappingProxyType

import numpy as np

from dp_adapter.errors import CatalogError, MissingDependencyError, SettingsError, WeightsError
from dp_adapter.identity import transface
from dp_adapter.identity.clip import ClipFeatures
from dp_adapter.identity.detect import Detector
from dp_adapter.identity.embed import Encoder
from dp_adapter.identity.encoders import Encoders
from dp_adapter.identity.face import Floats, similarity, template
from dp_adapter.identity.pictures import Picture
from dp_adapter.identity.quality import quality
from dp_adapter.identity.saved import SavedIdentity, SavedPhoto, View
from dp_adapter.session.photos import Photos, Seen, used
from dp_adapter.session.reading import aligned
from dp_adapter.session.reading_eva import encoded, outlines
from dp_adapter.session.reading_figures import PARSED_CROP, PERSON_CROP, cut_parsed, cut_person
from dp_adapter.session.remembered import IDENTITY
from dp_adapter.settings import Settings

PERSON = 0
_PACKS = ("buffalo_l", "antelopev2")
_PULID = "insightface/antelopev2"
_WITHOUT_CLIP = (_PULID,)  # no checkpoint takes both, and these features are the most of a file
_STORYMAKER_PACK = "buffalo_l"
_ELSEWHERE = {PERSON_CROP: (1024, 1664), PARSED_CROP: (1280, 1664)}  # widths of CLIP towers that take no such crop
_THUMBNAIL = 192
_AROUND = 1.2  # side of the thumbnail's face in sides of ArcFace's crop of 112 px; that is tight
_ABSENT = (CatalogError, MissingDependencyError, WeightsError)


@dataclass
class _Draft:
    """What is gathered photo by photo; ``looks`` by detector, of photos that are here."""

    digest: str
    weight: float
    looks: dict[str, Seen] = field(default_factory=dict[str, "Seen"])
    vectors: dict[str, dict[str, Floats]] = field(default_factory=dict[str, "dict[str, Floats]"])

    def photo(self) -> SavedPhoto:
        views = {name: _view(look, self.vectors[name]) for name, look in self.looks.items()}
        return SavedPhoto(self.digest, self.weight, MappingProxyType(views))


def embedded(name: str, settings: Settings, photos: Photos, encoders: Encoders) -> SavedIdentity:
    """Person 0 of a request, not written yet.

    Photos of saved identities come along with the vectors they have; only what all photos have is kept.

    Raises:
        DPAdapterError: no photo, or one that cannot be read or lacks the face.
    """
    notes: list[str] = []
    sources = _saved_sources(settings, photos)
    detectors = list(_detectors(encoders, notes))
    drafts = _look(settings, photos, [detector for detector, _ in detectors], notes)
    copied = [
        SavedPhoto(photo.digest, photo.weight * share, photo.views)
        for saved, share in sources
        for photo in saved.photos
        if all(photo.digest != draft.digest for draft in drafts)
    ]
    if not drafts and not copied:
        raise SettingsError("references", "no photo of person 0 is left to save", "Give one with a face.")
    versions = {kind: version for saved, _ in sources for kind, version in saved.encoders.items()}
    zeros = {tower: value for saved, _ in sources for tower, value in saved.zeros.items()}
    if drafts:
        versions |= _faces(drafts, detectors)
        versions |= _towers(drafts, encoders, zeros, notes)
        versions |= _patches(drafts, encoders, notes)
        versions |= _eva_towers(drafts, encoders, notes)
    notes += encoders.placement.told()
    kept = _common([draft.photo() for draft in drafts] + copied)
    kinds = {_kind(vector) for view in kept[0].views.values() for vector in view.vectors}
    notes += [f"{kind} is left out: not all photos have its vectors." for kind in sorted(set(versions) - kinds)]
    return SavedIdentity(
        name=name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        digest="",
        thumbnail=_thumbnail(drafts) if drafts else sources[0][0].thumbnail,
        encoders={kind: versions[kind] for kind in sorted(kinds)},
        hashes=tuple(photo.digest for photo in kept),
        photos=kept,
        zeros={tower: value for tower, value in zeros.items() if tower in kinds},
        notes=tuple(dict.fromkeys(notes)),
    )


def _saved_sources(settings: Settings, photos: Photos) -> list[tuple[SavedIdentity, float]]:
    """Saved identities among the references, each with its weight there."""
    return [
        (photos.saved(settings.references[n].image, f"references[{n}].image"), settings.references[n].weight)
        for n in used(settings, PERSON)
        if settings.references[n].image.startswith(IDENTITY)
    ]


def _detectors(encoders: Encoders, notes: list[str]) -> Iterator[tuple[Detector, Encoder]]:
    """Each detector with the face encoder that is run on its points."""
    yield encoders.yunet, encoders.sface
    for name in _PACKS:
        encoder = encoders.arcface(name, normed=False)
        try:
            encoder.version  # noqa: B018 - loads the pack
        except _ABSENT as error:
            notes.append(f"arcface/{name} is left out: {error.problem}.")
        else:
            yield encoders.pack(name), encoder


def _look(settings: Settings, photos: Photos, detectors: Sequence[Detector], notes: list[str]) -> list[_Draft]:
    """The photos that are here in which every detector finds the asked-for face, each once."""
    drafts: dict[str, _Draft] = {}
    for number in used(settings, PERSON):
        reference = settings.references[number]
        if reference.image.startswith(IDENTITY):
            continue
        looks: dict[str, Seen] = {}
        for detector in detectors:
            look = photos.look_at(settings, number, detector, notes)
            if look is None:
                break
            looks[detector.name] = look
        else:
            first = next(iter(looks.values()))
            drafts[first.digest] = _Draft(first.digest, reference.weight, looks)
    return list(drafts.values())


def _faces(drafts: Sequence[_Draft], detectors: Sequence[tuple[Detector, Encoder]]) -> dict[str, str]:
    """Runs the face encoders; returns their versions by kind."""
    for draft in drafts:
        for detector, encoder in detectors:
            look = draft.looks[detector.name]
            draft.vectors[detector.name] = {encoder.name: encoder.embed(look.picture, look.face)}
    return {_kind(encoder.name): encoder.version for _, encoder in detectors}


def _towers(drafts: Sequence[_Draft], encoders: Encoders, zeros: dict[str, Floats], notes: list[str]) -> dict[str, str]:
    """Runs the CLIP towers one after the other, which fits where all together would not; returns their versions."""
    versions: dict[str, str] = {}
    cuts = [_cuts(draft, encoders) for draft in drafts]
    for tower in encoders.towers():
        try:
            zeros[tower.kind] = tower.zeros().hidden[0].cpu().float().numpy()
        except _ABSENT as error:
            notes.append(f"{tower.kind} is left out: {error.problem}.")
            continue
        for draft, cut in zip(drafts, cuts, strict=True):
            for (name, crop), picture in cut.items():
                if tower.shape.hidden_size in _ELSEWHERE[crop]:
                    continue
                hidden = tower.encode(picture).hidden[0].cpu().float().numpy()
                draft.vectors[name][f"{tower.kind}/{crop}/hidden"] = hidden
            for name, look in draft.looks.items():
                if name not in _WITHOUT_CLIP:
                    draft.vectors[name] |= _named(f"{tower.kind}/face", tower.encode(aligned(look)))
                if name == encoders.yunet.name:  # checkpoints for whole pictures look for no face of their own
                    draft.vectors[name] |= _named(f"{tower.kind}/photo", tower.encode(look.picture))
        versions[tower.kind] = tower.version
    return versions


def _patches(drafts: Sequence[_Draft], encoders: Encoders, notes: list[str]) -> dict[str, str]:
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
    except _ABSENT as error:
        notes.append(f"TransFace is left out: {error.problem}.")
        return {}


def _eva_towers(drafts: Sequence[_Draft], encoders: Encoders, notes: list[str]) -> dict[str, str]:
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
        except _ABSENT as error:
            notes.append(f"{tower.kind} is left out: {error.problem}.")
            continue
        versions[tower.kind] = tower.version
        notes += outlines(encoders)
    return versions


def _cuts(draft: _Draft, encoders: Encoders) -> dict[tuple[str, str], Picture]:
    """What single families cut out, by detector and crop; each for the detector that its checkpoints take."""
    cuts: dict[tuple[str, str], Picture] = {}
    for name, look in draft.looks.items():
        if name == encoders.pack(_STORYMAKER_PACK).name:
            cuts[name, PERSON_CROP] = cut_person(look, encoders.parser)
        if name == encoders.yunet.name:
            cuts[name, PARSED_CROP] = cut_parsed(look, encoders.parser)
    return cuts


def _named(prefix: str, features: ClipFeatures) -> dict[str, Floats]:
    return {
        f"{prefix}/embeds": features.image_embeds[0].cpu().float().numpy(),
        f"{prefix}/hidden": features.hidden[0].cpu().float().numpy(),
    }


def _view(look: Seen, vectors: dict[str, Floats]) -> View:
    told = look.described(None)
    assert told.box is not None and told.chosen is not None
    return View(told.faces, told.chosen, told.box, quality(look.picture, look.face), MappingProxyType(vectors))


def _kind(vector: str) -> str:
    """The encoder of a vector: ``sface``, ``arcface/PACK``, ``clip/SIZES``."""
    return "/".join(vector.split("/")[:2])


def _common(photos: Sequence[SavedPhoto]) -> tuple[SavedPhoto, ...]:
    """The photos with the views and vectors that all of them have."""
    layouts = [{(name, vector) for name, view in photo.views.items() for vector in view.vectors} for photo in photos]
    shared = set[tuple[str, str]].intersection(*layouts)
    return tuple(
        SavedPhoto(
            photo.digest,
            photo.weight,
            {
                name: View(
                    view.faces,
                    view.chosen,
                    view.box,
                    view.quality,
                    {key: value for key, value in view.vectors.items() if (name, key) in shared},
                )
                for name, view in photo.views.items()
                if any(detector == name for detector, _ in shared)
            },
        )
        for photo in photos
    )


def _thumbnail(drafts: Sequence[_Draft]) -> bytes:
    """The best photo's face, upright and with some room around it, as a PNG file of 192 px."""
    import cv2
    from PIL import Image

    looks = [next(iter(draft.looks.values())) for draft in drafts]
    best = max(looks, key=lambda look: look.weight * look.quality.score)
    side = 4 * _THUMBNAIL  # reduced by area afterwards, since a warp skips pixels of a large face
    target = (template(112) - 56) * np.float32(4 * _AROUND) + np.float32(side / 2)
    crop = cv2.warpAffine(best.picture, similarity(best.face.points, target), (side, side))
    small = cv2.resize(crop, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(small, np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
