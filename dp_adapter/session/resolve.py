"""First stage: everything that a request leaves open is decided, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from dp_adapter.core.text.sharing_by_words import Sharing
from dp_adapter.errors import SettingsError
from dp_adapter.identity.encoders.encoder_pool import EncoderPool
from dp_adapter.modes import ModeFacts, Modes, ResolvedMode, needs_reference_age, resolve_mode
from dp_adapter.session.checkpoint_choices import BlendChoice, choose_blend, choose_parts, choose_variant
from dp_adapter.session.loaded_models import LoadedModels, require_base
from dp_adapter.session.photos.photo_age import estimate_age
from dp_adapter.session.photos.reference_photos import ReferencePhotos
from dp_adapter.session.scene import Scene
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import Checkpoint
from dp_adapter.weights.library import Library


@dataclass(frozen=True)
class ResolvedRequest:
    """A request without open questions. Nobody changes it any more.

    Attributes:
        mode: at work, with the request as the mode and the checkpoint complete it.
        variant: which of the families that share the checkpoint's keys it is.
        sharing: how several persons share the picture; one alone has a region in any case.
        notes: on what the checkpoint cannot have.
        used: by dotted path, what automatic values stood for whose meaning depends on what is installed here.
    """

    mode: ResolvedMode
    checkpoint: Checkpoint
    variant: str
    blend: BlendChoice
    sharing: Sharing
    notes: tuple[str, ...]
    used: Mapping[str, object]

    @property
    def settings(self) -> Settings:
        return self.mode.settings


class Resolver:
    """Resolves the requests of one session."""

    def __init__(
        self, modes: Modes, models: LoadedModels, library: Library, photos: ReferencePhotos, encoders: EncoderPool
    ) -> None:
        self._modes = modes
        self._models = models
        self._library = library
        self._photos = photos
        self._encoders = encoders

    def resolve(self, asked: Settings, scene: Scene) -> ResolvedRequest:
        """
        Raises:
            SettingsError: there is no photo or no such mode, or values do not go with the checkpoint or the base.
            WeightsError: there is no such checkpoint.
            DPAdapterError: the photo whose age is to be estimated cannot be used.
        """
        if not asked.references and not self._models.is_personal(asked.model):
            raise SettingsError(
                "references", "there is no photo", "Give a photo of the person, or disable the adapter."
            )
        mode = self._resolve_mode(asked, scene)
        checkpoint = self._models.checkpoint(asked.model)
        require_base(checkpoint, scene.base, "model")
        variant = choose_variant(asked.variant, checkpoint, self._library)
        parts, notes = choose_parts(mode.settings, checkpoint)
        asked_guidance = mode.settings.identity_guidance
        guidance = checkpoint.guidance if asked_guidance is None else asked_guidance
        used: dict[str, object] = {"model": checkpoint.path.name}
        if len(checkpoint.variants) > 1:
            used["variant"] = variant
        if asked.reference_age != mode.settings.reference_age:  # estimated by a pack that may not be there
            used["reference_age"] = mode.settings.reference_age
        return ResolvedRequest(
            mode=replace(mode, settings=mode.settings.replace(parts=parts, identity_guidance=guidance)),
            checkpoint=checkpoint,
            variant=variant,
            blend=choose_blend(asked.blend, asked.pulid_method, checkpoint),
            sharing=checkpoint.sharing if asked.sharing == "auto" else cast(Sharing, asked.sharing),
            notes=notes,
            used=used,
        )

    def _resolve_mode(self, asked: Settings, scene: Scene) -> ResolvedMode:
        mode = self._modes.of(asked.mode)
        age = estimate_age(asked, self._photos, self._encoders) if needs_reference_age(asked, mode) else None
        return resolve_mode(asked, mode, ModeFacts(age, scene.inpaint is not None))
