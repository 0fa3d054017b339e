"""LoRA layers of a UNet's attentions under diffusers' names, as the checkpoints' own numbering.

Names: ``unet.PATH.attnK.processor.to_q_lora.down.weight`` (diffusers before 0.22, as in the public PhotoMaker files),
``unet.PATH.attnK.to_q.lora.down.weight`` and PEFT's ``unet.PATH.attnK.to_q.lora_A.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dp_adapter.core.adapter import LowRank
from dp_adapter.errors import WeightsError
from dp_adapter.weights.build_modules import build_low_rank
from dp_adapter.weights.checkpoint import SITES, Base
from dp_adapter.weights.site_layers import checkpoint_order

_KEY = re.compile(
    r"(?:unet\.)?(?P<path>(?:down|up|mid)_block.*\.attn[12])\.(?:processor\.)?"
    r"(?P<linear>to_[qkv]|to_out)(?:\.0)?[._]lora(?:\.|_(?=[AB]\.))(?P<part>down|up|A|B)\.weight"
)
_ALPHA = re.compile(
    r"(?:unet\.)?(?P<path>.*\.attn[12])\.(?:processor\.)?(?P<linear>to_[qkv]|to_out)(?:\.0)?(?:_lora)?\.alpha"
)
_DOWN = {"down", "A"}


@dataclass
class _Pair:
    down: Tensor | None = None
    up: Tensor | None = None


def attention_lora(tensors: Mapping[str, Tensor], base: Base, name: str) -> tuple[LowRank, ...]:
    """Every layer of a LoRA, alpha worked into its ``up``.

    Args:
        name: of the file.

    Raises:
        WeightsError: layers are missing, or there are others than the attentions' q, k, v and out.
    """
    attentions: dict[str, dict[str, _Pair]] = {}
    alphas: dict[tuple[str, str], float] = {}
    for key, tensor in tensors.items():
        if match := _KEY.fullmatch(key):
            pair = attentions.setdefault(match["path"], {}).setdefault(match["linear"], _Pair())
            if match["part"] in _DOWN:
                pair.down = tensor
            else:
                pair.up = tensor
        elif match := _ALPHA.fullmatch(key):
            alphas[match["path"], match["linear"]] = float(tensor)
        else:
            raise WeightsError(
                f"{name}: its LoRA changes '{key[:80]}', which is no attention layer of a UNet",
                "It was made for another program.",
            )
    found = [
        (layer, path, linear, pair)
        for layer, path in enumerate(sorted(attentions, key=checkpoint_order))
        for linear, pair in attentions[path].items()
        if pair.down is not None and pair.up is not None
    ]
    expected = 8 * SITES[base]  # q, k, v and out of every attn1 and attn2
    if tensors and (len(found) != expected or len(attentions) != 2 * SITES[base]):
        raise WeightsError(f"{name}: its LoRA has {len(found)} of {expected} layers", "It is incomplete.")
    return tuple(_scaled(layer, linear, pair, alphas.get((path, linear))) for layer, path, linear, pair in found)


def _scaled(layer: int, linear: str, pair: _Pair, alpha: float | None) -> LowRank:
    assert pair.down is not None and pair.up is not None
    up = pair.up if alpha is None else pair.up * (alpha / len(pair.down))
    return build_low_rank(layer, linear, pair.down, up)
