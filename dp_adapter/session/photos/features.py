"""Chosen faces → the features that a checkpoint takes, the photos of a person joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from dp_adapter import naming
from dp_adapter.core.reference_photo import ReferencePhoto
from dp_adapter.core.types import Features
from dp_adapter.errors import SettingsError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.identity.faces.combine_photos import Combination, agreement, combine
from dp_adapter.identity.faces.detector import Detector
from dp_adapter.session.explanation import Photo
from dp_adapter.session.photos.latents import Latent
from dp_adapter.session.photos.reference_photos import Known
from dp_adapter.session.photos.saved_photos import SavedReference
from dp_adapter.session.photos.w_plus import Directions, require_kind
from dp_adapter.session.readers.faces import detector_for
from dp_adapter.session.readers.reader import CachedEncoders, EncoderNeed, EncoderOutput
from dp_adapter.session.readers.table import READERS
from dp_adapter.settings import WPlus
from dp_adapter.weights.checkpoint import Checkpoint

_APART = {"concatenate", "best"}  # ways that leave photos as they are
_SAME_PERSON = 0.25  # a photo whose mean cosine to the others is lower most likely shows somebody else


@dataclass(frozen=True)
class Person:
    """One person as the checkpoint takes them.

    Attributes:
        photos: what is told of each; encoders: names of those that looked at them.
        combine: how several photos were joined.
        sources: the photos themselves; none of a personalised identity, or where latents take their place.
        reference: the photo that the picture's self-attention looks at; reference_number: its number in the request.
    """

    features: Features
    photos: tuple[Photo, ...] = ()
    encoders: tuple[str, ...] = ()
    combine: str = "auto"
    notes: tuple[str, ...] = ()
    sources: tuple[Known, ...] = ()
    reference: ReferencePhoto | None = None
    reference_number: int = 0


class FeatureReader:
    """Runs the encoders that a checkpoint asks for; vectors are kept by content."""

    def __init__(self, encoders: EncoderPool, directions: Directions) -> None:
        self._encoders = CachedEncoders(encoders)
        self._directions = directions

    def forget(self) -> None:
        self._encoders.forget()

    def detector(self, checkpoint: Checkpoint, variant: str) -> Detector:
        return detector_for(self._encoders.pool, checkpoint, variant)

    def read(
        self,
        photos: Sequence[Known],
        latents: Sequence[Latent],
        checkpoint: Checkpoint,
        variant: str,
        combine: str,
        w_plus: WPlus,
    ) -> Person:
        """Features of one person.

        Args:
            latents: in place of photos, for W+ adapters; w_plus: how they are moved.
            combine: how several photos become one identity, as ``Settings.combine`` says.

        Raises:
            CatalogError, MissingDependencyError: an encoder that the checkpoint needs is not here.
            SettingsError: a saved identity lacks vectors of such an encoder, or the checkpoint takes no photos or no
                latents.
        """
        by_latents = "w-plus" in checkpoint.encoders
        require_kind(checkpoint, photos, latents)
        sources: Sequence[Known | Latent] = latents if by_latents else photos
        how = _choose_combination(combine, checkpoint, sources)
        sources, notes = _best_photos(checkpoint.most_photos, sources, how)
        outputs = [_latents_output(sources)] if by_latents else self._outputs(sources, checkpoint, variant)
        fields: dict[str, Tensor] = {}
        agreements: list[float | None] = [None] * len(sources)
        for output in outputs:
            fields |= {name: _join(output.encoder, vectors, sources, how) for name, vectors in output.fields.items()}
            fields |= output.constants
            if "faceid" in output.fields and len(sources) > 1:
                alike = agreement(torch.cat(output.fields["faceid"]).numpy())
                agreements = [round(float(x), 3) for x in alike]
            notes += output.notes
        notes += self._encoders.pool.placement.take_notes()
        described = tuple(one.describe(alike) for one, alike in zip(sources, agreements, strict=True))
        notes += [
            f"{naming.capitalise(photo.name)} looks like somebody else: its likeness to the other photos is "
            f"{photo.agreement:.2f}."
            for photo in described
            if photo.agreement is not None and photo.agreement < _SAME_PERSON
        ]
        if by_latents:
            fields["w_plus"] = self._directions.move(fields["w_plus"], w_plus)
        elif w_plus != WPlus():
            notes.append("StyleGAN moves do nothing here: they are for W+ adapters.")
        return Person(
            features=Features(**fields),
            photos=described,
            encoders=tuple(dict.fromkeys(output.encoder for output in outputs)),
            combine=how,
            notes=tuple(notes),
            sources=tuple(photos),
        )

    def _outputs(self, sources: Sequence[Known | Latent], checkpoint: Checkpoint, variant: str) -> list[EncoderOutput]:
        """Of every encoder that the checkpoint takes."""
        photos = [one for one in sources if not isinstance(one, Latent)]
        needs = (EncoderNeed(encoder, checkpoint, variant) for encoder in checkpoint.encoders)
        return [READERS[need.encoder](self._encoders, need).read(photos) for need in needs]


def _latents_output(sources: Sequence[Known | Latent]) -> EncoderOutput:
    """``w_plus`` [1, 18, 512], which the user gives."""
    return EncoderOutput("w-plus", {"w_plus": [one.values for one in sources if isinstance(one, Latent)]})


def _choose_combination(asked: str, checkpoint: Checkpoint, sources: Sequence[Known | Latent]) -> Combination:
    if asked == "auto":  # as it was trained; a mean counts each photo by its weight where the user gave different ones
        unequal = len({one.weight for one in sources}) > 1
        return "weighted" if checkpoint.combine == "average" and unequal else checkpoint.combine
    if "pixels" in checkpoint.encoders and asked not in _APART and len(sources) > 1:
        problem = f"'{asked}' would mix photos, and {checkpoint.title} looks at each by itself"
        raise SettingsError("combine", problem, "Use 'auto'.", "auto")
    return cast(Combination, asked)


def _best_photos(
    most: int | None, sources: Sequence[Known | Latent], how: Combination
) -> tuple[Sequence[Known | Latent], list[str]]:
    """The best photos where a checkpoint takes each by itself and was trained with no more, in their order."""
    if most is None or how != "concatenate" or len(sources) <= most:
        return sources, []
    ranked = sorted(range(len(sources)), key=lambda n: -sources[n].weight * sources[n].quality.score)[:most]
    note = f"The best {most} of {len(sources)} photos are used: the model was trained with no more."
    return [sources[n] for n in sorted(ranked)], [note]


def _join(encoder: str, vectors: Sequence[Tensor], seen: Sequence[Known | Latent], how: Combination) -> Tensor:
    """Photo by photo [1, ...] -> [k, ...], k = n for ``concatenate``, else 1."""
    if len({vector.shape for vector in vectors}) > 1:
        field = next(one.field for one in seen if isinstance(one, SavedReference))
        raise SettingsError(
            field, f"its vectors of {encoder} have another size than the other photos'", "Save the identity again."
        )
    stacked = torch.cat(list(vectors))  # [n, ...]
    weights, qualities = [one.weight for one in seen], [one.quality.score for one in seen]
    flat = combine(stacked.flatten(1).numpy(), weights, how, qualities)
    return torch.as_tensor(np.ascontiguousarray(flat)).reshape(-1, *stacked.shape[1:])
