"""The objective: one forward from a batch to the dictionary of losses, so that every gradient passes one module.

Shapes: B rows, h x w cells of the latent grid, D width of the text context, k rows that are edited.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dp_adapter.core.regions.region_masks import on_grid
from dp_adapter.core.types import Grid, Site
from dp_adapter.training import losses
from dp_adapter.training.base_model import FrozenBase, TextEncoding
from dp_adapter.training.config import LossWeights
from dp_adapter.training.differentiable_faces import FaceNetwork, embed_faces
from dp_adapter.training.unet.adapted_unet import AdaptedUNet, Conditions, Prediction
from dp_adapter.training.unet.trained_sites import Record


@dataclass(frozen=True, eq=False)
class CaptionEdit:
    """The first k rows of a batch at timesteps of their own, with their captions and with edited ones."""

    noisy: Tensor
    timesteps: Tensor
    plain: TextEncoding
    edited: TextEncoding


@dataclass(frozen=True, eq=False)
class ObjectiveInputs:
    """One batch with everything that is drawn at random for it.

    Attributes:
        noisy, noise: [B, 4, h, w]; timesteps: [B]; mask: [B, 1, h, w].
        features, others: [B, e] or [B, L, e], of the references and of other people.
        with_identity, only_inside: [B] bool; text_on: [B], or None where the text is always on.
        points: [B, 5, 2] in pixels; sface: [B, 128] of the targets.
        seed: of what is drawn on the device.
    """

    noisy: Tensor
    noise: Tensor
    timesteps: Tensor
    text: TextEncoding
    mask: Tensor
    features: Tensor
    others: Tensor
    with_identity: Tensor
    only_inside: Tensor
    text_on: Tensor | None
    points: Tensor
    sface: Tensor
    edit: CaptionEdit | None
    seed: int


def choose_records(weights: LossWeights) -> frozenset[Record]:
    """What the UNet's sites must record for these losses."""
    names: dict[Record, float] = {
        "localisation": weights.localisation,
        "fair": weights.fair,
        "attention": weights.story,
    }
    return frozenset(name for name, weight in names.items() if weight)


class Objective(nn.Module):
    """The losses of one stage.

    Args:
        adapted: the frozen UNet with the stage's adapter; faces: for the identity loss, else None.
        spread: whether FSDP has split the UNet; it gathers a block in the backward only if gradients reach its output.
    """

    def __init__(
        self,
        adapted: AdaptedUNet,
        frozen: FrozenBase,
        sites: list[Site],
        weights: LossWeights,
        faces: FaceNetwork | None,
        spread: bool = False,
    ) -> None:
        super().__init__()
        self.adapted = adapted
        self._weights, self._spread = weights, spread
        # In a tuple, so that they are no submodules: what wraps this one must not shard or average them.
        self._frozen = (frozen, faces)
        self._edited_halvings = next(site.halvings for site in sites if site.level == "up")

    def forward(self, inputs: ObjectiveInputs) -> dict[str, Tensor]:
        """The losses by name, not yet weighted, and ``loss``, their weighted sum."""
        weights, mask = self._weights, inputs.mask
        conditions = Conditions(inputs.text.context, self.adapted.make_tokens(inputs.features), mask, inputs.text_on)
        prediction = self._predict(inputs, conditions, choose_records(weights))
        noise = prediction.noise.float()
        terms: dict[str, Tensor] = {}
        if weights.face:
            terms["face"] = losses.masked_mse(noise, inputs.noise, mask, weights.face_gain, inputs.only_inside)
        if weights.background:
            terms["background"] = losses.outside_mse(noise, inputs.noise, mask)
        if weights.consistency:
            base = self.adapted.predict_base(inputs.noisy, inputs.timesteps, inputs.text.context, inputs.text.added)
            terms["consistency"] = losses.outside_mse(noise, base, mask)
        if weights.swap:
            terms["swap"] = losses.outside_mse(noise, self._predict_swapped(inputs, conditions), mask)
        for name, value in (("localisation", prediction.localisation), ("fair", prediction.fair)):
            if value is not None:
                terms[name] = value
        if weights.story and prediction.attention is not None:
            terms["story"] = losses.story_mask(prediction.attention, mask)
        if weights.edit and inputs.edit is not None:
            terms["edit"] = self._edit_loss(inputs.edit, conditions)
        if weights.identity:
            terms["identity"] = self._identity_loss(inputs, noise)
        terms["loss"] = torch.stack([getattr(weights, name) * value.float() for name, value in terms.items()]).sum()
        return terms

    def _predict(
        self, inputs: ObjectiveInputs, conditions: Conditions, record: frozenset[Record] = frozenset()
    ) -> Prediction:
        return self.adapted(
            inputs.noisy, inputs.timesteps, conditions, record=record, added_cond_kwargs=inputs.text.added
        )

    @torch.no_grad()
    def _predict_swapped(self, inputs: ObjectiveInputs, conditions: Conditions) -> Tensor:
        """The noise predicted for a mixture of each identity with another person's: [B, 4, h, w]."""
        assert conditions.tokens is not None
        others = self.adapted.make_tokens(inputs.others)
        generator = torch.Generator(inputs.noisy.device).manual_seed(inputs.seed)
        other = losses.interpolated_identity(conditions.tokens, others, generator)
        return self._predict(inputs, replace(conditions, tokens=other)).noise.float()

    def _edit_loss(self, edit: CaptionEdit, conditions: Conditions) -> Tensor:
        count = len(edit.noisy)
        assert conditions.tokens is not None
        tokens, mask = conditions.tokens[:count], conditions.mask[:count]

        kept_in_graph: list[Tensor] = []

        def features(text: TextEncoding, identity: bool) -> tuple[Tensor, ...]:
            prediction: Prediction = self.adapted(
                edit.noisy,
                edit.timesteps,
                Conditions(text.context, tokens, mask),
                identity=identity,
                record=frozenset({"features"}),
                added_cond_kwargs=text.added,
            )
            assert prediction.features is not None
            if self._spread and identity:
                kept_in_graph.append(0.0 * prediction.noise.float().sum())
            return prediction.features

        with torch.no_grad():
            base = [features(text, False) for text in (edit.edited, edit.plain)]
        edited, plain = features(edit.edited, True), features(edit.plain, True)
        grid = on_grid(mask[:, 0], Grid(*mask.shape[-2:]), self._edited_halvings).flatten(1)[..., None]
        return sum(kept_in_graph, losses.edit_direction(edited, plain, base[0], base[1], [grid] * len(plain)))

    def _identity_loss(self, inputs: ObjectiveInputs, noise: Tensor) -> Tensor:
        """L_id; decodes only the rows that it counts, since the others would cost memory for nothing."""
        frozen, faces = self._frozen
        assert faces is not None
        known = inputs.sface.square().sum(1) > 0
        rows = ((inputs.timesteps <= losses.IDENTITY_TIMESTEP) & inputs.with_identity & known).nonzero()[:, 0]
        if not len(rows):
            return noise.sum() * 0.0
        timesteps = inputs.timesteps[rows]
        clean = losses.clean_latents(inputs.noisy[rows], noise[rows], frozen.alphas, timesteps)
        points = inputs.points[rows].cpu().numpy()
        embeddings = embed_faces(faces, frozen.decode(clean), points)
        return losses.identity_loss(embeddings, inputs.sface[rows], timesteps)
