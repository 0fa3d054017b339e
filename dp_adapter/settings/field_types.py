"""What a value of a field may be: its check, its JSON form, its text form (infotext, flags, axes) and its schema.

``check`` raises SettingsError with an empty field name; ``messages.within`` adds the names level by level.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from dp_adapter.errors import SettingsError
from dp_adapter.settings.messages import closest, refusal, show, tidy

NAME = r"\w[\w \-]{0,63}"
PHOTO = r"photo:[0-9a-f]{16}"
NAME_WORDS = "1 to 64 letters, digits, spaces, hyphens or underscores"


class Kind(ABC):
    """The set of values a field may take."""

    @abstractmethod
    def check(self, value: object) -> object:
        """Returns the value in its normal form (float, tuple, …).

        Raises:
            SettingsError: the value is not of this kind; ``nearest`` is None where no valid value is near.
        """

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """JSON schema (draft 2020-12) of the JSON form."""

    @abstractmethod
    def describe(self) -> str:
        """The kind in words that fit after "Use"."""

    def read(self, data: object) -> object:
        """Turns the JSON form into a value; ``check`` still has to be called on it."""
        return data

    def write(self, value: Any) -> Any:
        """The JSON form of a checked value."""
        return value

    def brief(self, value: Any) -> Any:
        """As ``write``, but records inside leave out their fields at defaults."""
        return self.write(value)

    def parse(self, text: str) -> Any:
        """The JSON form of a text; text that cannot be read is returned as it is, for ``check`` to refuse by name."""
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    def parse_typed(self, text: str) -> Any:
        """As ``parse``, for what somebody types beside the panel.

        Raises:
            SettingsError: it means nothing here.
        """
        return self.parse(text)

    def format(self, value: Any) -> str:
        """The text of a checked value; ``parse`` gives its JSON form back."""
        return json.dumps(self.brief(value), ensure_ascii=False)


@dataclass(frozen=True)
class Flag(Kind):
    """True or false."""

    def check(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise refusal(f"{show(value)} is neither true nor false", "Use true or false.")

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def describe(self) -> str:
        return "true or false"

    def parse(self, text: str) -> Any:
        return super().parse(text.strip().lower())


@dataclass(frozen=True)
class Number(Kind):
    """A finite float in [low, high]; ``step`` is the slider's, values between steps are valid."""

    low: float
    high: float
    step: float

    def check(self, value: object) -> float:
        return float(_check_range(self, value))

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.low, "maximum": self.high}

    def describe(self) -> str:
        return f"a number from {tidy(self.low)} to {tidy(self.high)}"

    def format(self, value: Any) -> str:
        return tidy(value)


@dataclass(frozen=True)
class Integer(Kind):
    """A whole number in [low, high]; 2.0 counts as 2, as in JSON schema, because browsers send either.

    Attributes:
        noun: what it is the number of, where one of several is meant. JSON counts those from 0, people from 1: as text
            it is "person 2", which nobody takes for JSON's 1; plain numbers in the panel and on axes begin at 1.
    """

    low: int
    high: int
    step: int = 1
    noun: str = ""

    def check(self, value: object) -> int:
        number = _check_range(self, value)
        if number != int(number):
            raise refusal(f"{show(value)} is not a whole number", f"Use {round(number)}.", round(number))
        return int(number)

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

    def describe(self) -> str:
        first = f" ({self.format(self.low)})" if self.noun else ""
        return f"a whole number from {self.low}{first} to {self.high}"

    def parse(self, text: str) -> Any:
        """A plain number is JSON's, as earlier versions wrote it."""
        named = re.fullmatch(rf"\s*{self.noun}\s*(\d{{1,4}})\s*", text, re.ASCII | re.IGNORECASE) if self.noun else None
        return int(named[1]) - 1 if named else super().parse(text)

    def parse_typed(self, text: str) -> Any:
        plain = re.fullmatch(r"\s*([-+]?\d{1,4})\s*", text, re.ASCII) if self.noun else None
        if plain is None:
            return self.parse(text)
        if not self.low < int(plain[1]) <= self.high + 1:
            raise refusal(f"there is no {self.noun} {plain[1]}", f"Use {self.low + 1} to {self.high + 1}.")
        return int(plain[1]) - 1

    def format(self, value: Any) -> str:
        return f"{self.noun} {value + 1}" if self.noun else super().format(value)


def _check_range(kind: Number | Integer, value: object) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _not_a_number(kind, value)
    if isinstance(value, float) and math.isnan(value):
        raise refusal("nan is not a number", f"Use {kind.describe()}.")
    if value < kind.low:
        raise refusal(
            f"{show(value)} is below the minimum {_show_bound(kind, kind.low)}",
            f"Use {tidy(kind.low)} or more.",
            kind.low,
        )
    if value > kind.high:
        raise refusal(
            f"{show(value)} is above the maximum {_show_bound(kind, kind.high)}",
            f"Use {tidy(kind.high)} or less.",
            kind.high,
        )
    return value


def _show_bound(kind: Number | Integer, value: float) -> str:
    named = isinstance(kind, Integer) and kind.noun
    return f"{tidy(value)} ({kind.format(value)})" if named else tidy(value)


def _not_a_number(kind: Number | Integer, value: object) -> SettingsError:
    problem = f"{show(value)} is not a number"
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)\s*", value, re.ASCII):
        nearest = min(max(float(value), kind.low), kind.high)
        nearest = round(nearest) if isinstance(kind, Integer) else nearest
        return refusal(f"{show(value)} is text, not a number", f"Use {tidy(nearest)}, without quotes.", nearest)
    return refusal(problem, f"Use {kind.describe()}.")


@dataclass(frozen=True)
class Text(Kind):
    """A string of ``min_length`` to ``max_length`` characters, each of which a file can hold."""

    max_length: int
    min_length: int = 0

    def check(self, value: object) -> str:
        if not isinstance(value, str):
            raise refusal(f"{show(value)} is not text", "Use a text in quotes.")
        if len(value) < self.min_length:
            raise refusal("is missing or empty", f"Give {self.describe()}.")
        if len(value) > self.max_length:
            raise refusal(
                f"{show(value)} has {len(value)} characters, the maximum is {self.max_length}",
                "Shorten it.",
                value[: self.max_length],
            )
        usable = value.replace("\0", "").encode(errors="ignore").decode()
        if usable != value:
            raise refusal(f"{show(value)} contains NUL or half a character", "Remove it.", usable)
        return value

    def schema(self) -> dict[str, Any]:
        least = {"minLength": self.min_length} if self.min_length else {}
        return {"type": "string", "maxLength": self.max_length, **least}

    def describe(self) -> str:
        return f"a text of at most {self.max_length} characters"

    def parse(self, text: str) -> str:
        return text

    def format(self, value: Any) -> str:
        return value


@dataclass(frozen=True)
class Picture(Text):
    """A path, a data URL, base64 or ``photo:HASH``, HASH being the first 16 hex digits of the content's SHA-256.

    With ``saved``, also ``identity:NAME``; with ``latent``, also ``latent:NAME``. Whether it can be read shows on
    reading.
    """

    max_length: int = 64_000_000
    saved: bool = True
    latent: bool = False

    def check(self, value: object) -> str:
        text = super().check(value)
        name = text.removeprefix("identity:")
        if name != text and not self.saved:
            raise refusal(f"{show(text)} is a saved identity, not a picture", f"Give {self.describe()}.")
        if name != text and not re.fullmatch(NAME, name):
            raise refusal(
                f"{show(text)} does not name a saved identity", f"Use identity:NAME, NAME being {NAME_WORDS}."
            )
        if text.startswith("latent:") and (not self.latent or not text.removeprefix("latent:").strip()):
            raise refusal(f"{show(text)} does not name a picture", f"Give {self.describe()}.")
        if text.startswith("photo:") and not re.fullmatch(PHOTO, text):
            raise refusal(f"{show(text)} does not name a dropped photo", "Use photo:HASH, HASH being 16 hex digits.")
        return text

    def describe(self) -> str:
        forms = "a path, a data URL, base64"
        further = ["photo:HASH", *(["identity:NAME"] if self.saved else []), *(["latent:NAME"] if self.latent else [])]
        return ", ".join([forms, *further[:-1]]) + f" or {further[-1]}"


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few words; with ``own``, also ``own:NAME``."""

    choices: tuple[str, ...]
    own: str = ""

    def check(self, value: object) -> str:
        if isinstance(value, str) and (value in self.choices or self._is_own(value)):
            return value
        if not isinstance(value, str):
            raise refusal(f"{show(value)} is not text", f"Use {self.describe()}.")
        nearest = closest(value, self._options())
        hint = "Choose one of them." if nearest is None else f"Did you mean '{nearest}'?"
        raise refusal(f"{show(value)} is not {self.describe()}", hint, nearest)

    def _is_own(self, value: str) -> bool:
        return bool(self.own) and re.fullmatch(f"{self.own}:{NAME}", value) is not None

    def _options(self) -> tuple[str, ...]:
        return (*self.choices, f"{self.own}:NAME") if self.own else self.choices

    def schema(self) -> dict[str, Any]:
        listed = {"type": "string", "enum": list(self.choices)}
        return {"anyOf": [listed, {"type": "string", "pattern": f"^{self.own}:{NAME}$"}]} if self.own else listed

    def describe(self) -> str:
        return f"one of {', '.join(self._options())}"

    def parse(self, text: str) -> str:
        return text.strip()

    def format(self, value: Any) -> str:
        return value
