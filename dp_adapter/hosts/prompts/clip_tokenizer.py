"""CLIP's text side without a download: the tokenizer from the vocabulary that this package carries, the encoder."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from dp_adapter.errors import MissingDependencyError

if TYPE_CHECKING:
    from torch import Tensor

RESOURCES = Path(__file__).parents[2] / "resources"
END = "<|endoftext|>"

_START = "<|startoftext|>"
_MERGES = 49152 - 256 - 2


def clip_tokenizer(pad: str = END) -> Any:
    """A transformers ``CLIPTokenizer`` of the 49408 tokens of openai/clip-vit-large-patch14.

    Args:
        pad: padding token; SDXL's second encoder was trained with ``!``.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    try:
        from transformers import CLIPTokenizer
    except ImportError as error:
        raise MissingDependencyError("transformers", "Reading prompts", "generate") from error
    # Files are the one way to make it that transformers 4 (slow class) and 5 (fast only) share.
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder, pad)
        return cast(Any, CLIPTokenizer).from_pretrained(folder, local_files_only=True)


def write_tokenizer(folder: Path, pad: str = END) -> None:
    """Writes the files that every version of transformers makes this tokenizer of into a folder that is there."""
    merges = _merges()
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "bos_token": _START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": pad,
    }
    vocabulary = {token: index for index, token in enumerate(_tokens(merges))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _merges() -> list[str]:
    with gzip.open(RESOURCES / "clip_bpe_vocab.txt.gz", "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : _MERGES + 1]


def _tokens(merges: list[str]) -> list[str]:
    """All tokens by id. Source: openai/CLIP@dcba3cb ``clip/simple_tokenizer.py``."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    joined = ["".join(pair.split()) for pair in merges]
    return [*letters, *(letter + "</w>" for letter in letters), *joined, _START, END]


def clip_text_encoder(state: Mapping[str, Tensor], config: Path) -> Any:
    """CLIP's text encoder with these very tensors; what is missing among them stays on torch's meta device.

    Args:
        state: by names without ``text_model.``; config: folder with its configuration.
    """
    import torch
    import transformers

    library, model = cast(Any, transformers), "text_model."
    with torch.device("meta"):
        encoder = library.CLIPTextModel(library.CLIPTextConfig.from_pretrained(str(config), local_files_only=True))
    names: dict[str, str] = {name: name.removeprefix(model) for name in encoder.state_dict()}
    # transformers 5 has the names of 2022 again
    encoder.load_state_dict({name: state[bare] for name, bare in names.items() if bare in state}, False, assign=True)
    for module in encoder.modules():  # numbers that no file has to hold
        if getattr(module, "position_ids", None) is not None:
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
    return encoder.eval()
