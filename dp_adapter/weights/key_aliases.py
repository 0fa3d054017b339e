"""One name for what training scripts, converters and libraries name differently: the keys of adapters of all families.

Known are what tencent-ailab/IP-Adapter's scripts save before their own conversion (``image_proj_model``,
``adapter_modules`` and the frozen UNet beside), the same through accelerate as safetensors, which keeps of weights
that have two names the one under ``unet.``, PuLID's own names, and what DistributedDataParallel, FSDP, torch.compile
and Lightning put before and between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from dp_adapter.weights.files import WeightFile
from dp_adapter.weights.site_layers import checkpoint_order

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
_OUTER = re.compile(r"(?:state_dict|model_state_dict|model|net)\.(?!diffusion_model\.)")
_HOLDER = re.compile(r"(?:ip_adapter|adapter|ip_adapter_model)\.(?=(?:image_proj(?:_model)?|adapter_modules|unet)\.)")
_PREFIXES = (
    ("image_proj_model.", "image_proj."),
    ("id_adapter.", "image_proj."),
    ("adapter_modules.", "ip_adapter."),
    ("id_adapter_attn_layers.", "ip_adapter."),
)
_PULID_SITE = re.compile(r"(ip_adapter\.\d+\.)id_to_([kv])\.")
_PROCESSOR = re.compile(
    r"(?:unet\.)?(?P<path>(?:down|up|mid)_block.*)\.attn(?P<which>[12])\.processor\."
    r"(?P<name>(?:to_[kqv]_(?:ip|img)|to_(?:[qkv]|out)_lora\.(?:down|up)|text_to_weight|id_to_[kv]))(?:\.0)?\.weight"
)
_IDENTITY = re.compile(r"to_k_(?:ip|img)|id_to_k")
_PLAIN_PROCESSOR = re.compile(r"unet\..*\.attn2\.processor\.(?!.*lora)")  # FaceChain-FACT's
_FROZEN = re.compile(r"(?:unet|vae|text_encoder(?:_2)?|image_encoder)\.(?!.*(?:lora|\.processor\.))")


class _RenamedFile(WeightFile):
    """A file whose keys have been renamed, so that this is done once."""


def rename_keys(file: WeightFile) -> WeightFile:
    """The file with its keys as the families' readers know them, without a frozen model beside them.

    A key that is there under its own name stays as it is. No tensor is read.
    """
    if isinstance(file, _RenamedFile) or file.metadata.get("format", "pt") != "pt":  # of this project's own
        return file
    bare = {_strip_wrappers(key): tensor for key, tensor in file.tensors.items()}
    numbered = _number_layers(bare)
    tensors: dict[str, Tensor] = {}
    for key, tensor in bare.items():
        name = numbered.get(key) or _rename_key(key)
        if not _FROZEN.match(name) and (name == key or name not in bare):
            tensors[name] = tensor
    return _RenamedFile(file.path, tensors, file.metadata)


def _strip_wrappers(key: str) -> str:
    key = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    while match := _OUTER.match(key):
        key = key[match.end() :]
    return _HOLDER.sub("", key)


def _rename_key(key: str) -> str:
    theirs, ours = next((pair for pair in _PREFIXES if key.startswith(pair[0])), ("", ""))
    key = _PULID_SITE.sub(r"\1to_\2_ip.", ours + key.removeprefix(theirs))
    return key.removeprefix("unet.") if _PLAIN_PROCESSOR.match(key) else key


def _number_layers(keys: Iterable[str]) -> dict[str, str]:
    """Layers under a UNet's own paths, by the names that they have in a list of all processors: down, up, middle."""
    found = [match for key in keys if (match := _PROCESSOR.fullmatch(key))]
    if not any(_IDENTITY.match(match["name"]) for match in found):  # a LoRA alone, as PhotoMaker's
        return {}
    paths = sorted({match["path"] for match in found}, key=checkpoint_order)
    numbers = {path: 2 * index for index, path in enumerate(paths)}
    return {
        match.string: _rename_key(
            f"ip_adapter.{numbers[match['path']] + (match['which'] == '2')}.{match['name']}.weight"
        )
        for match in found
    }
