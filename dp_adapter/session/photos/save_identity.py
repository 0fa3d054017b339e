"""The photos of a request → a saved identity, as seen by every encoder that is here."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

import numpy as np

from dp_adapter import naming
from dp_adapter.errors import SettingsError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.detector import Detector
from dp_adapter.identity.faces.face import similarity, template
from dp_adapter.identity.faces.face_embedding import Encoder
from dp_adapter.identity.saved.saved_identity import EncoderView, SavedIdentity, SavedPhoto
from dp_adapter.session.photos.drafts import ABSENT, Draft, eva_towers, faces, kind_of, own_towers, patches, towers
from dp_adapter.session.photos.reference_photos import ReferencePhotos, SeenPhoto, used
from dp_adapter.session.photos.saved_photos import IDENTITY
from dp_adapter.session.readers.own_tower import towers_inside
from dp_adapter.settings import Settings
from dp_adapter.weights.library import Library

PERSON = 0
_PACKS = ("buffalo_l", "antelopev2")
_THUMBNAIL = 192
_AROUND = 1.2  # side of the thumbnail's face in sides of ArcFace's crop of 112 px; that is tight


def embedded(
    name: str, settings: Settings, photos: ReferencePhotos, encoders: EncoderPool, library: Library
) -> SavedIdentity:
    """The first person of a request, not written yet.

    Photos of saved identities come along with the vectors they have; only what all photos have is kept.

    Args:
        library: in whose files there are towers that look at photos themselves.

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
        raise SettingsError(
            "references", f"no photo of {naming.person(PERSON)} is left to save", "Give one with a face."
        )
    versions = {kind: version for saved, _ in sources for kind, version in saved.encoders.items()}
    zeros = {tower: value for saved, _ in sources for tower, value in saved.zeros.items()}
    if drafts:
        versions |= faces(drafts, detectors)
        versions |= towers(drafts, encoders, zeros, notes)
        versions |= patches(drafts, encoders, notes)
        versions |= eva_towers(drafts, encoders, notes)
        versions |= own_towers(drafts, encoders, towers_inside(library, notes), notes)
    notes += encoders.placement.told()
    kept = _common([draft.photo() for draft in drafts] + copied)
    kinds = {kind_of(vector) for view in kept[0].views.values() for vector in view.vectors}
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


def _saved_sources(settings: Settings, photos: ReferencePhotos) -> list[tuple[SavedIdentity, float]]:
    """Saved identities among the references, each with its weight there."""
    return [
        (photos.saved(settings.references[n].image, f"references[{n}].image"), settings.references[n].weight)
        for n in used(settings, PERSON)
        if settings.references[n].image.startswith(IDENTITY)
    ]


def _detectors(encoders: EncoderPool, notes: list[str]) -> Iterator[tuple[Detector, Encoder]]:
    """Each detector with the face encoder that is run on its points."""
    yield encoders.yunet, encoders.sface
    for name in _PACKS:
        encoder = encoders.arcface(name, normed=False)
        try:
            encoder.version  # noqa: B018 - loads the pack
        except ABSENT as error:
            notes.append(f"arcface/{name} is left out: {error.problem}.")
        else:
            yield encoders.pack(name), encoder


def _look(settings: Settings, photos: ReferencePhotos, detectors: Sequence[Detector], notes: list[str]) -> list[Draft]:
    """The photos that are here in which every detector finds the asked-for face, each once."""
    drafts: dict[str, Draft] = {}
    for number in used(settings, PERSON):
        reference = settings.references[number]
        if reference.image.startswith(IDENTITY):
            continue
        looks: dict[str, SeenPhoto] = {}
        for detector in detectors:
            look = photos.look_at(settings, number, detector, notes)
            if look is None:
                break
            looks[detector.name] = look
        else:
            first = next(iter(looks.values()))
            drafts[first.digest] = Draft(first.digest, reference.weight, looks)
    return list(drafts.values())


def _common(photos: Sequence[SavedPhoto]) -> tuple[SavedPhoto, ...]:
    """The photos with the views and vectors that all of them have."""
    layouts = [{(name, vector) for name, view in photo.views.items() for vector in view.vectors} for photo in photos]
    shared = set[tuple[str, str]].intersection(*layouts)
    return tuple(
        SavedPhoto(
            photo.digest,
            photo.weight,
            {
                name: EncoderView(
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


def _thumbnail(drafts: Sequence[Draft]) -> bytes:
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
