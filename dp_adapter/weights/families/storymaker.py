"""StoryMaker files (SDXL): the projection, IP-Adapter's attention layers and the LoRA of FaceID.

Written from the mathematics of RedAIGC/StoryMaker@a7ce766 ``pipeline_sdxl_storymaker.py`` and
``ip_adapter/ip_adapter_faceid.py``, which has no licence file; parameter names are theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dp_adapter import naming
from dp_adapter.core.adapter import Adapter
from dp_adapter.core.projection import FacePlusProjection, Resampler, State, strip_prefix
from dp_adapter.core.types import Features, Tokens
from dp_adapter.errors import WeightsError
from dp_adapter.weights.build_modules import build_projection, build_site
from dp_adapter.weights.checkpoint import Checkpoint, RecipeOptions, require
from dp_adapter.weights.families.ip_adapter import read_lora
from dp_adapter.weights.files import WeightFile
from dp_adapter.weights.site_layers import read_layers

_PREFIX = "image_proj."


class StoryMakerProjection(FacePlusProjection):
    """Persons -> one group of tokens for the background and one for each of them.

    A person's group is made of their face and figure alone; its number among the persons has a learned embedding.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.resample = Resampler(strip_prefix(state, "resample."))
        context = state["proj_out.weight"].shape[0]
        self.proj_out = nn.Linear(context, context)
        self.norm_out = nn.LayerNorm(context)
        self.pos_embed = nn.Parameter(torch.empty_like(state["pos_embed"], dtype=torch.float32))
        self.bg_embed = nn.Parameter(torch.empty_like(state["bg_embed"], dtype=torch.float32))

    @property
    def most_persons(self) -> int:
        return self.pos_embed.shape[0]

    def persons(self, faceid: Tensor, face: Tensor, figure: Tensor, first: int = 0, structure: float = 1.0) -> Tensor:
        """Tokens of p persons, and of the background.

        Args:
            faceid: [p, e].
            face, figure: CLIP's hidden states [p, L, c] of the aligned faces and of the cut-out persons.
            first: number of the first of them among all persons.
            structure: weight of the face's CLIP part.

        Returns:
            [1 + p, T, D], the background's group first.
        """
        groups = torch.cat([self.forward(faceid, face, True, structure), self.resample(figure)], dim=1)  # [p, T, D]
        groups = groups + self.pos_embed[first : first + len(groups)]
        return torch.cat([self.bg_embed, groups + self.norm_out(self.proj_out(groups))])


def recognise(file: WeightFile) -> bool:
    return all(_PREFIX + key in file.tensors for key in ("bg_embed", "pos_embed", "resample.latents"))


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = build_projection(StoryMakerProjection, strip_prefix(file.tensors, _PREFIX), file)
    context = net.norm_out.normalized_shape[0]
    sites = [build_site(k, v) for k, v in read_layers(file, "ip_adapter", ("to_k_ip", "to_v_ip"), context, "sdxl")]
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base="sdxl",
        adapter=Adapter(net, sites),
        encoders=("arcface", "clip-hidden", "clip-person"),
        recipe=_make_tokens,
        tokens_per_photo=2 * net.bg_embed.shape[1],
        features_width={
            "arcface": file.tensors[_PREFIX + "proj.0.weight"].shape[1],
            "clip-hidden": net.perceiver_resampler.proj_in.in_features,
            "clip-person": net.resample.proj_in.in_features,
        },
        lora=read_lora(file, "sdxl"),
        combine="best",
        parts=("hair", "neck", "clothes"),
    )


def _make_tokens(adapter: Adapter, features: Features, options: RecipeOptions) -> Tokens:
    """The background's tokens, then those of each person in the features: one, whose number the options say, or all.

    The unconditional tokens are made of zeros in place of what the encoders give; the background's stay what they are.

    Raises:
        WeightsError: features are missing or too wide, or there are more persons than the checkpoint takes.
    """
    net = adapter.projection
    assert isinstance(net, StoryMakerProjection)
    face = require(features.faceid, "face embeddings", _face_width(net))
    hidden = require(
        features.clip_hidden, "CLIP hidden states of the face", net.perceiver_resampler.proj_in.in_features
    )
    person = require(features.clip_person, "CLIP hidden states of the person", net.resample.proj_in.in_features)
    if options.person + len(face) > net.most_persons:
        raise WeightsError(
            f"This StoryMaker checkpoint knows at most {net.most_persons} persons; "
            f"{naming.person(options.person + len(face) - 1)} is one too many",
            "Use fewer persons, or another model.",
        )
    photos = (face, hidden, person)
    cond = net.persons(*photos, first=options.person, structure=options.structure)
    uncond = net.persons(*map(torch.zeros_like, photos), first=options.person, structure=options.structure)
    return Tokens(cond.flatten(0, 1), uncond.flatten(0, 1))


def _face_width(net: StoryMakerProjection) -> int:
    first = net.proj[0]
    assert isinstance(first, torch.nn.Linear)
    return first.in_features
