"""Learned words as a textual inversion embedding, which every host and diffusers reads by the file's name.

Layouts: ``emb_params`` [k, 768] for SD1.5, ``clip_l`` [k, 768] and ``clip_g`` [k, 1280] for SDXL, as
AUTOMATIC1111/stable-diffusion-webui@82a973c ``modules/textual_inversion/textual_inversion.py`` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dp_adapter.errors import WeightsError
from dp_adapter.whole_files import write_whole

_KEYS = {1: ("emb_params",), 2: ("clip_l", "clip_g")}


def save_embedding(path: Path, learned: Tensor, widths: Sequence[int]) -> None:
    """Writes learned words [k, d] alone, without what else was learned of the person.

    Args:
        widths: input widths of the base's text encoders, which make up d.

    Raises:
        WeightsError: the name does not end in .safetensors, or the widths are not the words'.
    """
    from safetensors.torch import save_file

    if path.suffix != ".safetensors":
        raise WeightsError(f"{path.name} is no name for an embedding", "Let it end in .safetensors.")
    if sum(widths) != learned.shape[1] or len(widths) not in _KEYS:
        raise WeightsError(f"The learned words are {learned.shape[1]} wide, the text encoders {list(widths)}")
    words, start, tensors = learned.detach().float().cpu(), 0, dict[str, Tensor]()
    for key, width in zip(_KEYS[len(widths)], widths, strict=True):
        tensors[key] = words[:, start : start + width].contiguous()
        start += width
    with write_whole(path) as beside:
        save_file(tensors, str(beside))
