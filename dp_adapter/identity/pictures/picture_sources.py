"""The text by which a request names a picture: a path, a data URL or base64."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dp_adapter.errors import PictureError
from dp_adapter.identity.pictures.picture_files import Picture, load_picture

T = TypeVar("T")

_DATA_URL = re.compile(r"data:[\w.+/-]*(;[\w=.-]+)*;base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}")
_LONGEST_PATH = 4096


def read_source(text: str, paths_allowed: bool) -> Picture:
    """The photograph that a request names. Raises as ``read_as``."""
    return read_as(text, paths_allowed, load_picture)


def read_as(text: str, paths_allowed: bool, read: Callable[[Path | bytes], T]) -> T:
    """What a request names.

    Args:
        paths_allowed: False refuses paths, for requests that come over a network.
        read: ``load``, or one of the two that read it as a photograph or a mask.

    Raises:
        PictureError: it is an address, a forbidden path, or no picture.
    """
    if not (paths_allowed and _is_file(text)) and (data := decode_inline(text)) is not None:
        return read(data)
    if not paths_allowed:
        raise PictureError("A picture in a request must be base64 or a data URL", "Paths are not read from requests.")
    if len(text) > _LONGEST_PATH:
        raise PictureError(f"'{text[:40]}…' is neither a path nor base64", "Encode the file's bytes again.")
    return read(_expand(text))


def decode_inline(text: str) -> bytes | None:
    """The picture file that a data URL or base64 holds; None where the text can only be a path.

    Raises:
        PictureError: it is an address, or cannot be decoded.
    """
    if re.match(r"\w+://", text):
        raise PictureError(f"'{text[:80]}' is an address; pictures are never fetched", "Give the picture itself.")
    header = _DATA_URL.match(text[:200])
    # stripped, since a pattern that ends in optional spaces takes quadratic time on a request of many spaces
    if header or _BASE64.fullmatch(text.strip()):
        return _decode_base64(text[header.end() :] if header else text)
    if text[:5].lower() == "data:":
        raise PictureError(
            f"'{text[:40]}…' is no data URL of a picture", "Write data:image/png;base64, and the base64."
        )
    return None


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:  # binascii.Error, or other letters than ASCII
        raise PictureError(
            f"A picture's base64 cannot be decoded ({error})", "Encode the file's bytes again."
        ) from None


def _expand(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who has no home here
        raise PictureError(f"The path '{text}' cannot be followed ({error})", "Write the whole path.") from None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # base64 of a picture is longer than a file name may be
        return False
