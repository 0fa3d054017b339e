"""How old the person in a photo is."""

from __future__ import annotations

from dp_adapter.errors import CatalogError, MissingDependencyError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.session.photos.latents import LATENT
from dp_adapter.session.photos.reference_photos import ReferencePhotos, used
from dp_adapter.session.photos.saved_photos import IDENTITY
from dp_adapter.settings import Settings

_PACKS = ("buffalo_l", "antelopev2")  # both come with genderage.onnx


def estimate_age(settings: Settings, photos: ReferencePhotos, encoders: EncoderPool) -> int | None:
    """Age in years of the first person in their first photo that is here; None where nothing can tell.

    Raises:
        DPAdapterError: that photo cannot be used.
    """
    here = [n for n in used(settings, 0) if not settings.references[n].image.startswith((IDENTITY, LATENT))]
    for pack in map(encoders.pack, _PACKS if here else ()):
        try:
            if not pack.has_age_network:
                continue
        except (CatalogError, MissingDependencyError):
            continue
        photo = photos.look_at(settings, here[0], pack, [])
        return None if photo is None else pack.age(photo.picture, photo.face)
    return None
