"""A personalised identity as a file: safetensors of ``Personal.state_dict()`` with metadata that says what it is.

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
from torch import Tensor

from dp_adapter.core.adapter import Adapter
from dp_adapter.core.personal import HEADS, Personal
from dp_adapter.core.text.text_side import TextIdentity
from dp_adapter.core.types import Features
from dp_adapter.errors import WeightsError
from dp_adapter.weights.checkpoint import Base, Checkpoint, TokenOptions, no_tokens
from dp_adapter.weights.families.ip_adapter import built
from dp_adapter.weights.files import WeightFile

FORMAT = "dp_adapter_personal"
FAMILY = "personal"
VERSION = 2
_MOST_WORDS = 75  # that fit into a chunk of the text encoder


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
    net = built(_like, {key: value.float() for key, value in file.tensors.items()}, file, "personalised identity")
    return Checkpoint(
        path=file.path,
        family=family,
        title=title,
        base=_base(file),
        adapter=Adapter(net, ()),
        encoders=(),
        recipe=no_tokens,
        tokens_per_photo=0,
        features_width={},
        fusion=partial(_fusion, word=file.metadata.get("word", "")),
        metadata=file.metadata,
    )


def _like(state: Mapping[str, Tensor]) -> Personal:
    faceid, anchor = state["faceid"], state["anchor"]
    if faceid.ndim != 1 or anchor.ndim != 2 or anchor.shape[1] % HEADS:
        raise ValueError("faceid must be [e] and anchor [k, D]")
    learned = state.get("learned")
    if learned is not None and (learned.ndim != 2 or not 1 <= len(learned) <= _MOST_WORDS):
        raise ValueError(f"learned must be [k, d], k from 1 to {_MOST_WORDS}")
    return Personal(faceid, anchor, learned=learned)


def _base(file: WeightFile) -> Base:
    facts = file.metadata
    if not facts.get("version", "").isdigit() or int(facts["version"]) > VERSION:
        raise WeightsError(
            f"{file.path.name} was written in version {facts.get('version')} of the format; this extension reads "
            f"up to {VERSION}",
            "Update the extension.",
        )
    if facts.get("base") not in get_args(Base):
        raise WeightsError(
            f"{file.path.name}: its metadata says base '{facts.get('base')}', known are {get_args(Base)}"
        )
    return next(name for name in get_args(Base) if name == facts["base"])


def _fusion(adapter: Adapter, _features: Features, _options: TokenOptions, *, word: str) -> TextIdentity:
    net = adapter.projection
    assert isinstance(net, Personal)

    def fuse(context: Tensor, _positions: Sequence[int]) -> Tensor:
        with torch.no_grad():
            return net(context.to(net.get_buffer("anchor"))).to(context)

    if net.learned is None:
        return TextIdentity(fuse, needs_word=False)
    learned = net.learned.detach()
    return TextIdentity(fuse, tokens=len(learned), learned=learned, word=word)
