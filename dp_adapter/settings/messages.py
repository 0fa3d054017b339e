"""Words for refusals: how a value is shown, what is near it, and which field it was in."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

from dp_adapter.errors import SettingsError

_SHOWN_CHARACTERS = 60  # of a value; with quotation marks and escapes it takes 80 at most
_ALIKE = 0.6  # share of common letters, below which two words are different words


def show(value: object) -> str:
    """A value as it appears in a sentence; long ones are cut, since a picture in base64 is a value too."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple | set | frozenset):
        return "a list"
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of more than 18 digits"
    if isinstance(value, str) and len(value) > _SHOWN_CHARACTERS:
        value = value[:_SHOWN_CHARACTERS] + "…"
    text = repr(value)
    return text if len(text) <= 80 else text[:_SHOWN_CHARACTERS] + "…"


def tidy(number: float) -> str:
    """The shortest text that reads back as this number, whole numbers without a point."""
    return str(int(number)) if math.isfinite(number) and number == int(number) else repr(number)


def count(number: int, noun: str) -> str:
    """``1 photo``, ``2 photos``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def closest(value: str, options: Iterable[str]) -> str | None:
    """The option that ``value`` may be a slip of the pen for; None where a guess would be a bad one."""
    folded = {option.lower(): option for option in options}
    wanted = value[:_SHOWN_CHARACTERS].lower()
    found = difflib.get_close_matches(wanted, list(folded), n=1, cutoff=_ALIKE)
    return folded[found[0]] if found else None


def refusal(problem: str, hint: str, nearest: object = None) -> SettingsError:
    """An error of the value at hand; ``within`` gives it the field's name."""
    return SettingsError("", problem, hint, nearest)


@contextmanager
def within(name: str) -> Generator[None, None, None]:
    """Puts ``name`` before the field of any SettingsError raised inside."""
    try:
        yield
    except SettingsError as error:
        inner = error.field
        field = name + inner if not inner or inner.startswith("[") else f"{name}.{inner}"
        raise SettingsError(field, error.problem.removeprefix(f"{inner}: "), error.hint, error.nearest) from None


def split_list(text: str) -> list[str]:
    """Values with commas or line breaks between; one that has such in it stands in quotation marks, as in CSV.

    As the WebUIs read the values of an axis (``csv_string_to_list_strip`` in scripts/xyz_grid.py).

    Raises:
        SettingsError: without a field's name.
    """
    lines = io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n"))
    try:
        return [value.strip() for row in csv.reader(lines, skipinitialspace=True) for value in row]
    except csv.Error as error:
        raise refusal(f"{show(text)} is no list of values ({error})", "Write them with commas between.") from None
