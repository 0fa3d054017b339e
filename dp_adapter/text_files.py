"""Text files as users have them: UTF-8 or UTF-16 with or without a mark, Windows' Western code page, Shift-JIS.

Old encodings are told only where no other reading makes sense; what is unclear is an error, never a guess.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path

UNKNOWN = "its encoding cannot be told, save it as UTF-8"
_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SURE = 0.4  # of the bytes at every second place: Western text in UTF-16
_ACCENTED = "À-ÖØ-öø-ÿŒœŠšŽžŸ"
_WESTERN = re.compile(rf"[\t\n\r -~{_ACCENTED}€‘’“”–—…•™¡£§©«®°´»¿ª·º½\xa0]*")
_WORD = re.compile(rf"[A-Za-z{_ACCENTED}]+")
_HIRAGANA = re.compile("[ぁ-ゖ]")
_JAPANESE = re.compile(r"[\t\n\r -~　-〿ぁ-ヿ一-鿿Ａ-Ｚａ-ｚ０-９！-／：-？]*")


def read_text(path: Path) -> str:
    """A file's text, with ``\\n`` between its lines.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text, or its encoding cannot be told.
    """
    return decode(path.read_bytes())


def decode(data: bytes) -> str:
    """The text of a file's content; raises ValueError as ``read_text``."""
    text = _decode(data)
    if "\0" in text:
        raise ValueError("it is no text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decode(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)  # UnicodeDecodeError is a ValueError
    if b"\0" in data:
        return data.decode(_guess_utf16(data))
    text = _try_decode(data, "utf-8")
    # two Chinese characters in GBK can look like one of UTF-8 that does not exist
    if text is None or any(char < "\U00010000" and unicodedata.category(char) == "Cn" for char in text):
        return _decode_legacy(data)
    return text


def _guess_utf16(data: bytes) -> str:
    """Which UTF-16 text with many letters of ASCII is in, whose every second byte is 0."""
    first, second = (data[start::2].count(0) / max(len(data) // 2, 1) for start in (0, 1))
    if len(data) % 2 or min(first, second) > 0 or max(first, second) < _SURE:
        raise ValueError("it is no text")
    return "utf-16-be" if first else "utf-16-le"


def _decode_legacy(data: bytes) -> str:
    japanese = _try_decode(data, "cp932")
    # Chinese in GBK has other bytes where Japanese has its most common letters
    if japanese is not None and len(_HIRAGANA.findall(japanese)) > 1 and _JAPANESE.fullmatch(japanese):
        return japanese
    western = _try_decode(data, "cp1252")
    glued = any(_try_decode(data, other) is not None for other in ("cp932", "gb18030", "big5", "euc_kr", "euc_jp"))
    if western is None or not _WESTERN.fullmatch(western) or not _makes_words(western, 1 / 2 if glued else 2 / 3):
        raise ValueError(UNKNOWN)
    return western


def _try_decode(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _makes_words(text: str, most: float) -> bool:
    """Whether accented letters and curved quotation marks stand where Western languages have them.

    Args:
        most: of a word's letters that may be accented.
    """
    words = _WORD.findall(text)
    accents = [sum(letter > "~" for letter in word) for word in words]
    if len(text.split()) == 1 and words != [text]:  # could be anything, such as UTF-16 without a mark
        return False
    few = all(len(word) == 1 or count <= most * len(word) for word, count in zip(words, accents, strict=True))
    quoted = text.count("“") == text.count("”") and not re.search(r"(?:^|\s)[”’](?=\w)", text)
    return few and quoted and sum(accents) * 3 <= sum(map(len, words))
