"""One field's value as a parameter's text. The hosts' grammar is narrow: what it would change is written as JSON.

The hosts (``modules/infotext_utils.py``) quote values with a comma, colon or line break, strip others, drop empty ones,
unquote what begins and ends with a quotation mark, split ``512x768`` in two, and leave out a value equal to its key.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from dp_adapter import naming
from dp_adapter.settings import Kind, ListOf, Nullable, Picture, SiteFactors
from dp_adapter.settings.messages import tidy

_JSON = "json "
_PHOTO = re.compile(r"photo:([0-9a-f]{16})(?: (.*))?", re.DOTALL)


def encode_value(kind: Kind, value: Any, names: Mapping[str, str], key: str) -> str:
    """The text of a checked value, such that every host reads it back unchanged.

    Args:
        names: file names of photos by hash.
        key: the parameter's name.

    Raises:
        ValueError: the value is a picture itself.
    """
    text = _text(kind, value, names)
    return text if _survives(text, key) else _JSON + json.dumps(text)


def decode_value(kind: Kind, text: str, names: dict[str, str]) -> Any:
    """The JSON form of a parameter's text, for its field to check; file names go into ``names``."""
    if text.startswith(_JSON):
        with contextlib.suppress(
            ValueError, RecursionError
        ):  # somebody's own words that begin so, typed into the parameters
            text = str(json.loads(text[len(_JSON) :]))
    if isinstance(kind, Picture):
        return _read_photo(text, names)
    if isinstance(kind, SiteFactors):
        return _read_factors(text)
    return kind.parse(text)


def _text(kind: Kind, value: Any, names: Mapping[str, str]) -> str:
    if isinstance(kind, Nullable):
        return "null" if value is None else _text(kind.item, value, names)
    if isinstance(kind, Picture):
        return _with_file_name(value, names)
    if isinstance(kind, SiteFactors):
        return ", ".join(f"{site}={tidy(factor)}" for site, factor in value) or "none"
    if isinstance(kind, ListOf):
        return ", ".join(kind.item.format(item) for item in value) or "[]"
    return kind.format(value)


def _survives(text: str, key: str) -> bool:
    """Whether a host reads this text back as it is."""
    tidied = text.strip() == text and all(map(str.isprintable, text))
    mistaken = text.startswith(('"', _JSON)) or re.fullmatch(r"\d+x\d+", text) is not None
    return bool(text) and tidied and not mistaken and text != key


def _with_file_name(value: str, names: Mapping[str, str]) -> str:
    if not value or value.startswith(("identity:", "latent:")):
        return value
    match = _PHOTO.fullmatch(value)
    if match is None:
        raise ValueError("a picture's parameters hold no picture: keep it first, as photo:HASH")
    name = names.get(match[1], "")
    return f"{value} {name}" if name else value


def _read_photo(text: str, names: dict[str, str]) -> str:
    match = _PHOTO.fullmatch(text)
    if match is None:
        return text
    if match[2]:
        names[match[1]] = naming.word(match[2])
    return f"photo:{match[1]}"


def _read_factors(text: str) -> Any:
    """``3=0.5, 7=1.25`` in JSON form; what cannot be read goes on as text, for the field to refuse."""
    if text == "none":
        return {}
    pairs = [re.fullmatch(r"\s*(\d+)\s*=\s*([-+.\deE]+)\s*", part, re.ASCII) for part in text.split(",")]
    try:
        return {pair[1]: float(pair[2]) for pair in pairs if pair} if all(pairs) else text
    except ValueError:
        return text
