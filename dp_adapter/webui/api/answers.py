"""What the routes answer, as plain JSON types."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dp_adapter import naming
from dp_adapter.errors import FaceError, IdentityError, SettingsError
from dp_adapter.hints import hide_folders
from dp_adapter.modes import Modes, describe_mode, fill_in
from dp_adapter.settings import Parts, Settings
from dp_adapter.settings.fields import fields_of
from dp_adapter.webui.parameters.infotext_photos import IDENTITY, PHOTO

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from dp_adapter.core.types import Grid
    from dp_adapter.hosts.attach.sites import Base
    from dp_adapter.session import Session
    from dp_adapter.session.model_list import ModelFacts, ModelListing
    from dp_adapter.session.photos.reference_photos import SeenPhoto
    from dp_adapter.webui.api.bodies import RegionsRequest

_THUMBNAIL = 112  # px, of a face
_MOST_DRAWN = 2**27  # px of all masks in an answer together: eight at 4096 x 4096
_HASH = 16  # hex digits of a photo's digest, as in photo:HASH


def list_models(known: ModelListing, base: Base | None) -> dict[str, Any]:
    return {"models": [_describe_model(facts, base) for facts in known.listed(base)]}


def _describe_model(facts: ModelFacts, base: Base | None) -> dict[str, Any]:
    reason = facts.misfit(base)
    return {
        "name": facts.name,
        "fits": not reason,
        "title": facts.title or None,
        "base": facts.base,
        "variants": list(facts.variants),
        "reason": reason or None,
    }


def list_modes(known: Modes) -> dict[str, Any]:
    """One of the user's own that cannot be read says why."""
    listed: list[dict[str, Any]] = []
    for name in known.names():
        try:
            mode = known.of(name)
        except SettingsError as error:
            listed.append({"name": name, "problem": str(error)})
        else:
            facts = {"title": mode.title or None, "does": describe_mode(mode), "needs": list(mode.needs)}
            listed.append({"name": name, **facts})
    return {"modes": listed}


def list_identities(session: Session) -> dict[str, Any]:
    """Without thumbnails; one that cannot be read says why."""
    listed: list[dict[str, Any]] = []
    for name in session.identities.names():
        try:
            listed.append({**describe_identity(session, name), "thumbnail": None})
        except IdentityError as error:
            listed.append({"name": name, "problem": str(error)})
    return {"identities": listed}


def describe_identity(session: Session, name: str) -> dict[str, Any]:
    """Raises IdentityError: it cannot be read."""
    card = session.identities.header(name)
    return {
        "name": card.name,
        "created": card.created,
        "digest": card.digest,
        "photos": [digest[:_HASH] for digest in card.hashes],
        "encoders": dict(card.encoders),
        "thumbnail": base64.b64encode(card.thumbnail).decode(),
    }


def save_identity(session: Session, name: str, settings: Mapping[str, Any], replace: bool) -> dict[str, Any]:
    """Raises DPAdapterError: the name or a photo cannot be used."""
    request = _require_photos(settings)
    saved = session.save_identity(name, request, replace)
    return {**describe_identity(session, saved.name), "notes": list(map(hide_folders, saved.notes)) or None}


def find_faces(session: Session, image: str, choice: Mapping[str, Any], thumbnails: bool) -> dict[str, Any]:
    """Raises DPAdapterError: the picture cannot be read, or the face choice is not valid."""
    if image.startswith(IDENTITY):
        raise SettingsError("image", "a saved identity has no picture", "Give a photo.")
    photo = image if image.startswith(PHOTO) else PHOTO + session.photos.keep(image, "image")
    picture = session.photos.read(photo, "image")
    request = Settings.from_dict({"references": [{"image": photo}], "face": choice})
    found = session.photos.see_all(picture, session.encoders.yunet)
    chosen, reason = None, None
    try:
        taken = session.photos.look_at(request, 0, session.encoders.yunet, [])
        assert taken is not None  # it stops where it has none
        chosen = next(index for index, one in enumerate(found) if (one.face.box == taken.face.box).all())
    except FaceError as error:
        reason = str(error).removeprefix("references[0]: ")
    return {
        "photo": photo,
        "width": picture.shape[1],
        "height": picture.shape[0],
        "faces": [_describe_face(index, one, thumbnails) for index, one in enumerate(found)],
        "chosen": chosen,
        "reason": reason,
    }


def _describe_face(index: int, seen: SeenPhoto, thumbnail: bool) -> dict[str, Any]:
    face, quality = seen.face, seen.quality
    return {
        "index": index,
        "box": [round(side, 1) for side in face.box.tolist()],
        "score": round(face.score, 3),
        "size": round(face.size, 1),
        "quality": round(quality.score, 3),
        "warnings": list(quality.warnings()),
        "thumbnail": _encode_png(_crop_face(seen)) if thumbnail else None,
    }


def _crop_face(seen: SeenPhoto) -> Image:
    from PIL import Image

    left, top, right, bottom = (round(side) for side in seen.face.box.tolist())
    part = seen.picture[top : max(bottom, top + 1), left : max(right, left + 1)]
    return Image.fromarray(part).resize((_THUMBNAIL, _THUMBNAIL))


def find_regions(session: Session, base: Base, body: RegionsRequest) -> dict[str, Any]:
    """Raises DPAdapterError: a picture cannot be read, or the settings are not valid."""
    from dp_adapter.session import Scene
    from dp_adapter.session.regions.forecast import forecast_regions, note_missing_regions
    from dp_adapter.session.regions.requested_regions import RequestedRegions

    asked = Settings.from_dict(body.settings)
    request = fill_in(asked, session.modes.of(asked.mode))
    inits = (session.photos.read(body.init, "init"),) if body.init else ()
    width, height = body.width, body.height
    scene = Scene(base, width, height, inits)
    requested = RequestedRegions(request, scene, session.photos, session.encoders)
    persons = sorted({item.identity for item in request.references or request.regions}) or [0]
    listed: list[dict[str, Any]] = []
    size = _choose_drawn_size(width, height, len(persons) * (body.masks + len(fields_of(Parts)) * body.parts))
    for one in forecast_regions(request, scene, session.photos, session.encoders, persons):
        seen = requested.face_parts(one.number) if body.parts else {}
        listed.append(
            {
                "person": one.number,
                "source": one.source,
                "coverage": round(one.coverage, 4),
                "known": one.known,
                "follows": one.follows,
                "mask": _draw_mask(None if one.mask is None else one.mask[0], size) if body.masks else None,
                "parts": {name: _draw_mask(part, size) for name, part in seen.items()} or None,
            }
        )
    notes = note_missing_regions(request.regions, request.sharing, {one["person"]: one["source"] for one in listed})
    return {"width": width, "height": height, "regions": listed, "notes": notes}


def _choose_drawn_size(width: int, height: int, masks: int) -> Grid:
    """The picture's size, or a half, a third and so on of it, so that so many masks are drawn in a few seconds."""
    from dp_adapter.core.types import Grid

    factor = 1
    while masks * (height // factor) * (width // factor) > _MOST_DRAWN:
        factor += 1
    return Grid(height // factor, width // factor)


def _draw_mask(mask: Tensor | None, size: Grid) -> str:
    """A mask [h, w] of any size as a PNG of this one; None is white."""
    from PIL import Image

    from dp_adapter.session.regions.face_mask import fit_mask

    if mask is None:
        return _encode_png(Image.new("L", (size.width, size.height), 255))
    return _encode_png(Image.fromarray((fit_mask(mask, size).numpy() * 255 + 0.5).astype("uint8")))


def embed_faces(session: Session, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Raises DPAdapterError: a photo cannot be used, or there is none."""
    import numpy as np

    request = _require_photos(settings)
    notes: list[str] = []
    persons: list[dict[str, Any]] = []
    for person in range(request.identities):
        seen, left_out = session.photos.look(request, person, session.encoders.yunet)
        notes += left_out
        if not seen:
            if session.photos.latents(request, person):  # which raises where there is no such file
                notes.append(f"{naming.capitalise(naming.person(person))} has a latent only, in which no face is seen.")
            continue
        units = [_normalise(session.photos.judged(one)) for one in seen]
        mean = _normalise(np.sum([one.weight * unit for one, unit in zip(seen, units, strict=True)], axis=0))
        photos = [
            {"photo": one.digest[:_HASH], "weight": one.weight, "vector": _round_all(unit)}
            for one, unit in zip(seen, units, strict=True)
        ]
        persons.append({"person": person, "vector": _round_all(mean), "photos": photos})
    encoder = session.encoders.sface
    return {
        "encoder": encoder.name,
        "dimensions": encoder.dim,
        "persons": persons,
        "notes": list(map(hide_folders, notes)),
    }


def _require_photos(settings: Mapping[str, Any]) -> Settings:
    request = Settings.from_dict(settings)
    if not request.references:
        raise SettingsError("references", "there is no photo", "Give a photo of the person.")
    return request


def _normalise(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _round_all(vector: NDArray[np.float32]) -> list[float]:
    return [round(number, 6) for number in vector.tolist()]


def _encode_png(picture: Image) -> str:
    written = io.BytesIO()
    picture.save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()
