"""A personalised identity: ID-EA's ID-Enhancer and ID-Adapter (arXiv 2507.11990), trained for one person.

    E_f = Linear(MHA(q = W_q Linear(f), k = v = W_kv E_a))      ID-Enhancer, f the face embedding, E_a the anchor
    p   = Linear(E_f)
    S   = SelfMHA([y; p]), the text's part of it
    y'  = y + beta * tanh(gamma) * S                            ID-Adapter, y one chunk of the text's context

Source: Whslee/ID-EA@9481a95 ``train.py`` CrossAttentionFusion and AdapterLayer; parameter names are theirs. The
released code trains the adapter but saves only two words for the text encoder's input; here the whole is kept and
applied. Those words are ``learned``: vectors in place of the person's word at the text encoder's input.
Shapes: k anchor tokens (two), D width of the text context, e of the face embedding, d of the encoder's input (with two
encoders their widths together; in Stable Diffusion d = D).

A file is safetensors of ``Personal.state_dict()`` with metadata that says what it is.
Metadata: ``format`` = ``dp_adapter_personal``, ``version``, ``base``, ``identity`` (the person's name) and ``training``
(JSON facts). No photo is needed to use it. Version 2 has ``learned`` words besides, and ``word`` in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.text.text_side import TextIdentity
from dp_adapter.core.types import Features
from dp_adapter.errors import WeightsError
from dp_adapter.weights.build_modules import build_module
from dp_adapter.weights.checkpoint import Base, Checkpoint, RecipeOptions, make_no_tokens
from dp_adapter.weights.files import WeightFile, require_version

FORMAT = "dp_adapter_personal"
VERSION = 2
_MOST_WORDS = 75  # that fit into a chunk of the text encoder
_HEADS = 8
_CHUNK = 77  # tokens that a text encoder sees at once
BETA = 0.4


class IdentityEnhancer(nn.Module):
    """Face embedding [e] and anchor [k, D] -> the identity's embedding E_f [k, 2 D]."""

    def __init__(self, face: int, context: int) -> None:
        super().__init__()
        self.arcface_dim_expander = nn.Linear(face, context)
        self.query_projection = nn.Linear(context, context)
        self.key_value_projection = nn.Linear(context, context)
        self.cross_attention = nn.MultiheadAttention(context, _HEADS, batch_first=True)
        self.linear_projection = nn.Linear(context, 2 * context)

    def forward(self, faceid: Tensor, anchor: Tensor) -> Tensor:
        query = self.query_projection(self.arcface_dim_expander(faceid).expand(len(anchor), -1))  # [k, D]
        keys = self.key_value_projection(anchor)
        return self.linear_projection(self.cross_attention(query, keys, keys)[0])


class IdentityAdapter(nn.Module):
    """Context of chunks [n, L, D] and E_f [k, 2 D] -> [n, L, D]; equal to the context as initialised (gamma = 0)."""

    def __init__(self, context: int, beta: float = BETA) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * context, context)
        self.self_attention = nn.MultiheadAttention(context, _HEADS, batch_first=True)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.register_buffer("beta", torch.tensor(beta))

    def forward(self, context: Tensor, fused: Tensor) -> Tensor:
        person = self.fc1(fused).expand(len(context), -1, -1)
        joined = torch.cat([context, person], dim=1)  # [n, L + k, D]
        attended = self.self_attention(joined, joined, joined, need_weights=False)[0]
        return context + self.get_buffer("beta") * torch.tanh(self.gamma) * attended[:, : context.shape[1]]


class Personal(nn.Module):
    """Everything of one person.

    Args:
        faceid: the person's face embedding [e]; anchor: mean embedding of well-known names [k, D].
        learned: vectors at the text encoder's input [k, d]; None for a person without words of their own.
    """

    def __init__(self, faceid: Tensor, anchor: Tensor, beta: float = BETA, learned: Tensor | None = None) -> None:
        super().__init__()
        self.context = anchor.shape[1]
        self.enhancer = IdentityEnhancer(len(faceid), self.context)
        self.adapter = IdentityAdapter(self.context, beta)
        self.register_buffer("faceid", faceid)
        self.register_buffer("anchor", anchor)
        self.learned = None if learned is None else nn.Parameter(learned.clone())

    def fused(self) -> Tensor:
        """The identity's embedding E_f [k, 2 D]."""
        return self.enhancer(self.get_buffer("faceid"), self.get_buffer("anchor"))

    def forward(self, context: Tensor) -> Tensor:
        """The context [L, D] of one row with the person in it, chunk by chunk of 77 tokens."""
        fused = self.fused()
        starts = range(0, len(context), _CHUNK)
        return torch.cat([self.adapter(context[None, at : at + _CHUNK], fused)[0] for at in starts])


def recognise(file: WeightFile) -> bool:
    return file.metadata.get("format") == FORMAT


def save(
    path: Path, personal: Personal, base: Base, identity: str, training: Mapping[str, object], word: str = ""
) -> None:
    """Writes one person's networks, and their learned words where they have some.

    Args:
        identity: the person's name, for people to read.
        training: facts to keep with the weights (steps, data, date); must be JSON.
        word: that the learned words stand for in prompts; empty for the person words of the prompt.
    """
    from safetensors.torch import save_file

    version = 1 if personal.learned is None else VERSION  # without learned words older readers know it
    metadata = {"format": FORMAT, "version": str(version), "base": base, "identity": identity}
    if personal.learned is not None:
        metadata["word"] = word
    tensors = {key: value.detach().contiguous().cpu() for key, value in personal.state_dict().items()}
    save_file(tensors, str(path), metadata=metadata | {"training": json.dumps(dict(training))})


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    state = {key: value.float() for key, value in file.tensors.items()}
    net = build_module(_personal_like, state, file, "its personalised identity")
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base=_read_base(file),
        adapter=Adapter(net, ()),
        encoders=(),
        recipe=make_no_tokens,
        tokens_per_photo=0,
        features_width={},
        fusion=partial(_make_text_identity, word=file.metadata.get("word", "")),
        metadata=file.metadata,
    )


def _personal_like(state: Mapping[str, Tensor]) -> Personal:
    faceid, anchor = state["faceid"], state["anchor"]
    if faceid.ndim != 1 or anchor.ndim != 2 or anchor.shape[1] % _HEADS:
        raise ValueError("faceid must be [e] and anchor [k, D]")
    learned = state.get("learned")
    if learned is not None and (learned.ndim != 2 or not 1 <= len(learned) <= _MOST_WORDS):
        raise ValueError(f"learned must be [k, d], k from 1 to {_MOST_WORDS}")
    return Personal(faceid, anchor, learned=learned)


def _read_base(file: WeightFile) -> Base:
    facts = file.metadata
    require_version(file, VERSION)
    if facts.get("base") not in get_args(Base):
        raise WeightsError(
            f"{file.path.name}: its metadata says base '{facts.get('base')}', known are {get_args(Base)}"
        )
    return next(name for name in get_args(Base) if name == facts["base"])


def _make_text_identity(adapter: Adapter, _features: Features, _options: RecipeOptions, *, word: str) -> TextIdentity:
    net = adapter.projection
    assert isinstance(net, Personal)

    def fuse(context: Tensor, _positions: Sequence[int]) -> Tensor:
        with torch.no_grad():
            return net(context.to(net.get_buffer("anchor"))).to(context)

    if net.learned is None:
        return TextIdentity(fuse, needs_word=False)
    learned = net.learned.detach()
    return TextIdentity(fuse, tokens=len(learned), learned=learned, word=word)
