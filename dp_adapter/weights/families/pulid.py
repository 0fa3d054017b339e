"""PuLID files for SDXL: v1, v1.1, and repacks of either under IP-Adapter's names.

``id_adapter.*`` or ``image_proj.*``, and ``id_adapter_attn_layers.N.id_to_{k,v}.weight`` or
``ip_adapter.N.to_{k,v}_ip.weight`` with N odd; down, up, middle.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.pulid_projection import IdEncoder, IdFormer
from dp_adapter.core.types import Features, Tokens
from dp_adapter.errors import WeightsError
from dp_adapter.weights.checkpoint import SITES, Checkpoint, TokenOptions, given
from dp_adapter.weights.families.ip_adapter import load_projection, site_from, under
from dp_adapter.weights.files import WeightFile

FAMILY = "pulid"
_PREFIX = "image_proj."
_SITE = re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.weight")
_V1, _V1_1 = "body.0.weight", "id_embedding_mapping.0.weight"
_ARCFACE = 512  # the file tells only the width of ArcFace's and EVA's vectors together


def recognise(file: WeightFile) -> bool:
    encoder = f"{_PREFIX}mapping_0.0.weight" in file.tensors
    version = {f"{_PREFIX}{_V1}", f"{_PREFIX}{_V1_1}"} & file.tensors.keys()
    return encoder and bool(version) and any(_SITE.fullmatch(key) for key in file.tensors)


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    state = under(file.tensors, _PREFIX)
    first = _V1 in state
    net = load_projection(IdEncoder.like if first else IdFormer.like, state, file)
    return Checkpoint(
        path=file.path,
        family=family,
        title=f"{title} {'v1' if first else 'v1.1'}",
        base="sdxl",
        adapter=Adapter(net, _sites(file, _context(net))),
        encoders=("arcface-raw", "eva"),
        recipe=_tokens,
        tokens_per_photo=net.tokens,
        features_width={"arcface-raw": _ARCFACE, "eva": net.hidden_width},
        combine="concatenate",
        mode="orthogonal_v2",
        pack="antelopev2",
    )


def _context(net: IdEncoder | IdFormer) -> int:
    return net.context if isinstance(net, IdEncoder) else net.proj_out.shape[1]


def _sites(file: WeightFile, context: int) -> list[SiteAdapter]:
    layers: dict[int, dict[str, Tensor]] = {}
    for key, tensor in file.tensors.items():
        if match := _SITE.fullmatch(key):
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    if len(layers) != SITES["sdxl"]:
        raise WeightsError(
            f"{file.path.name} has {len(layers)} attention layers; PuLID for SDXL has {SITES['sdxl']}",
            "It is incomplete, or made for another base model.",
        )
    sites: list[SiteAdapter] = []
    for number in sorted(layers):
        k, v = layers[number].get("k"), layers[number].get("v")
        if k is None or v is None or k.shape != v.shape or k.ndim != 2 or k.shape[1] != context:
            problem = f"{file.path.name}: layer {number} lacks a matching pair of K and V for tokens of width {context}"
            raise WeightsError(problem, "The file is incomplete, or was put together from different models.")
        sites.append(site_from(k, v))
    return sites


def _tokens(adapter: Adapter, features: Features, _options: TokenOptions) -> Tokens:
    """v1: the photos' tokens one after another; v1.1: the same number for any number of photos.

    The unconditional tokens are the encoder's for zeros; v1.1 takes one photo of them
    (``pipeline_v1_1.py``, ToTheBeginning/PuLID@1aa2fc7).
    """
    net = adapter.projection
    assert isinstance(net, IdEncoder | IdFormer)
    if features.faceid is None or features.eva_pooled is None:
        missing = "raw ArcFace embeddings" if features.faceid is None else "EVA02-CLIP's image embeddings"
        raise WeightsError(f"This checkpoint needs {missing}, and none was computed")
    pooled = functional.normalize(features.eva_pooled.float(), dim=-1)
    face = torch.cat([features.faceid.float(), pooled], -1)  # [n, e]
    face = given(face, "raw ArcFace embeddings with EVA02-CLIP's image embeddings", net.face_width)
    hidden = given(features.eva_hidden, "EVA02-CLIP's hidden states", net.hidden_width)
    if isinstance(net, IdFormer):
        return Tokens(net(face, hidden), net(torch.zeros_like(face[:1]), torch.zeros_like(hidden[:1])))
    return Tokens(net(face, hidden).flatten(0, 1), net(torch.zeros_like(face), torch.zeros_like(hidden)).flatten(0, 1))
