"""StoryMaker files (SDXL): the projection, IP-Adapter's attention layers and the LoRA of FaceID.

Source: RedAIGC/StoryMaker@a7ce766 ``pipeline_sdxl_storymaker.py``, which has no licence file.
"""

from __future__ import annotations

import torch

from dp_adapter import naming
from dp_adapter.core.adapter import Adapter
from dp_adapter.core.projection_figures import StoryMakerProjection
from dp_adapter.core.types import Features, Tokens
from dp_adapter.errors import WeightsError
from dp_adapter.weights.checkpoint import Checkpoint, TokenOptions, given
from dp_adapter.weights.families.ip_adapter import load_projection, lora_of, site_from, under
from dp_adapter.weights.files import WeightFile
from dp_adapter.weights.site_layers import layers

_PREFIX = "image_proj."


def recognise(file: WeightFile) -> bool:
    return all(_PREFIX + key in file.tensors for key in ("bg_embed", "pos_embed", "resample.latents"))


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    net = load_projection(StoryMakerProjection.like, under(file.tensors, _PREFIX), file)
    context = net.norm_out.normalized_shape[0]
    sites = [site_from(k, v) for k, v in layers(file, "ip_adapter", ("to_k_ip", "to_v_ip"), context, "sdxl")]
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base="sdxl",
        adapter=Adapter(net, sites),
        encoders=("arcface", "clip-hidden", "clip-person"),
        recipe=_tokens,
        tokens_per_photo=2 * net.bg_embed.shape[1],
        features_width={
            "arcface": file.tensors[_PREFIX + "proj.0.weight"].shape[1],
            "clip-hidden": net.perceiver_resampler.proj_in.in_features,
            "clip-person": net.resample.proj_in.in_features,
        },
        lora=lora_of(file, "sdxl"),
        combine="best",
        parts=("hair", "neck", "clothes"),
    )


def _tokens(adapter: Adapter, features: Features, options: TokenOptions) -> Tokens:
    """The background's tokens, then those of each person in the features: one, whose place the options say, or all.

    The unconditional tokens are made of zeros in place of what the encoders give; the background's stay what they are.

    Raises:
        WeightsError: features are missing or too wide, or there are more persons than the checkpoint has places for.
    """
    net = adapter.projection
    assert isinstance(net, StoryMakerProjection)
    face = given(features.faceid, "face embeddings", _inputs(net))
    hidden = given(features.clip_hidden, "CLIP hidden states of the face", net.perceiver_resampler.proj_in.in_features)
    person = given(features.clip_person, "CLIP hidden states of the person", net.resample.proj_in.in_features)
    if options.person + len(face) > net.most_persons:
        raise WeightsError(
            f"This StoryMaker checkpoint knows at most {net.most_persons} persons; "
            f"{naming.person(options.person + len(face) - 1)} is one too many",
            "Use fewer persons, or another model.",
        )
    given_all = (face, hidden, person)
    cond = net.persons(*given_all, first=options.person, structure=options.structure)
    uncond = net.persons(*map(torch.zeros_like, given_all), first=options.person, structure=options.structure)
    return Tokens(cond.flatten(0, 1), uncond.flatten(0, 1))


def _inputs(net: StoryMakerProjection) -> int:
    first = net.proj[0]
    assert isinstance(first, torch.nn.Linear)
    return first.in_features
