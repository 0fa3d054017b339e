"""The photos of a request → a saved identity, as seen by every encoder that is here."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np

from dp_adapter import naming
from dp_adapter.errors import SettingsError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.detector import Detector
from dp_adapter.identity.faces.face import similarity, template
from dp_adapter.identity.saved.saved_identity import FaceView, SavedIdentity, SavedPhoto, network_of
from dp_adapter.session.photos.reference_photos import ReferencePhotos, SeenPhoto, used
from dp_adapter.session.photos.saved_photos import IDENTITY
from dp_adapter.session.readers.draft import ABSENT, Draft, DraftPhoto
from dp_adapter.session.readers.reader import CachedEncoders
from dp_adapter.session.readers.table import READERS
from dp_adapter.settings import Settings
from dp_adapter.weights.library import Library

PERSON = 0
_PACKS = ("buffalo_l", "antelopev2")
_THUMBNAIL = 192
_AROUND = 1.2  # side of the thumbnail's face in sides of ArcFace's crop of 112 px; that is tight


def encode_identity(
    name: str, settings: Settings, photos: ReferencePhotos, encoders: EncoderPool, library: Library
) -> SavedIdentity:
    """The first person of a request as every encoder that is here sees them; no file is written.

    Photos of saved identities come along with the vectors they have; only what all photos have is kept.

    Args:
        library: in whose files there are towers that look at photos themselves.

    Raises:
        DPAdapterError: no photo, or one that cannot be read or lacks the face.
    """
    sources = _saved_sources(settings, photos)
    draft = Draft(
        photos=[],
        library=library,
        versions={network: version for saved, _ in sources for network, version in saved.encoders.items()},
        zeros={tower: value for saved, _ in sources for tower, value in saved.zeros.items()},
    )
    draft.photos = _find_faces(settings, photos, list(_detectors(encoders, draft)), draft.notes)
    copied = [
        SavedPhoto(photo.digest, photo.weight * share, photo.views)
        for saved, share in sources
        for photo in saved.photos
        if all(photo.digest != new.digest for new in draft.photos)
    ]
    if not draft.photos and not copied:
        raise SettingsError(
            "references", f"no photo of {naming.person(PERSON)} is left to save", "Give one with a face."
        )
    if draft.photos:
        cached = CachedEncoders(encoders)
        for reader in dict.fromkeys(READERS.values()):
            reader.store(draft, cached)
    draft.notes += encoders.placement.take_notes()
    kept = _keep_common([photo.saved() for photo in draft.photos] + copied)
    networks = {network_of(vector) for view in kept[0].views.values() for vector in view.vectors}
    absent = sorted(set(draft.versions) - networks)
    draft.notes += [f"{network} is left out: not all photos have its vectors." for network in absent]
    return SavedIdentity(
        name=name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        digest="",
        thumbnail=_thumbnail(draft.photos) if draft.photos else sources[0][0].thumbnail,
        encoders={network: draft.versions[network] for network in sorted(networks)},
        hashes=tuple(photo.digest for photo in kept),
        photos=kept,
        zeros={tower: value for tower, value in draft.zeros.items() if tower in networks},
        notes=tuple(dict.fromkeys(draft.notes)),
    )


def _saved_sources(settings: Settings, photos: ReferencePhotos) -> list[tuple[SavedIdentity, float]]:
    """Saved identities among the references, each with its weight there."""
    return [
        (photos.saved(settings.references[n].image, f"references[{n}].image"), settings.references[n].weight)
        for n in used(settings, PERSON)
        if settings.references[n].image.startswith(IDENTITY)
    ]


def _detectors(encoders: EncoderPool, draft: Draft) -> Iterator[Detector]:
    """Each detector whose face encoder is here."""
    yield encoders.yunet
    for name in _PACKS:
        try:
            encoders.arcface(name, normed=False).version  # noqa: B018 - loads the pack
        except ABSENT as error:
            draft.leave_out(f"arcface/{name}", error)
        else:
            yield encoders.pack(name)


def _find_faces(
    settings: Settings, photos: ReferencePhotos, detectors: Sequence[Detector], notes: list[str]
) -> list[DraftPhoto]:
    """The photos that are here in which every detector finds the asked-for face, each once."""
    found: dict[str, DraftPhoto] = {}
    for number in used(settings, PERSON):
        reference = settings.references[number]
        if reference.image.startswith(IDENTITY):
            continue
        framed: dict[str, SeenPhoto] = {}
        for detector in detectors:
            photo = photos.look_at(settings, number, detector, notes)
            if photo is None:
                break
            framed[detector.name] = photo
        else:
            digest = framed[detectors[0].name].digest
            found[digest] = DraftPhoto(digest, reference.weight, framed, {name: {} for name in framed})
    return list(found.values())


def _keep_common(photos: Sequence[SavedPhoto]) -> tuple[SavedPhoto, ...]:
    """The photos with the views and vectors that all of them have."""
    layouts = [{(name, vector) for name, view in photo.views.items() for vector in view.vectors} for photo in photos]
    shared = set[tuple[str, str]].intersection(*layouts)

    def common(name: str, view: FaceView) -> FaceView:
        return replace(view, vectors={key: value for key, value in view.vectors.items() if (name, key) in shared})

    views = [{name: common(name, view) for name, view in photo.views.items()} for photo in photos]
    return tuple(
        replace(photo, views={name: view for name, view in kept.items() if view.vectors})
        for photo, kept in zip(photos, views, strict=True)
    )


def _thumbnail(photos: Sequence[DraftPhoto]) -> bytes:
    """The best photo's face, upright and with some room around it, as a PNG file of 192 px."""
    import cv2
    from PIL import Image

    framed = [next(iter(photo.framed.values())) for photo in photos]
    best = max(framed, key=lambda photo: photo.weight * photo.quality.score)
    side = 4 * _THUMBNAIL  # reduced by area afterwards, since a warp skips pixels of a large face
    target = (template(112) - 56) * np.float32(4 * _AROUND) + np.float32(side / 2)
    crop = cv2.warpAffine(best.picture, similarity(best.face.points, target), (side, side))
    small = cv2.resize(crop, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(small, np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
