"""CLIP's tokenizer without a download, from the vocabulary that this package carries."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from dp_adapter.errors import MissingDependencyError

RESOURCES = Path(__file__).parent.parent / "resources"
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
