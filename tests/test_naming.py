"""People count persons, photos, faces and regions from 1, in every sentence of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dp_adapter import naming

PACKAGE = Path(naming.__file__).parent
SHELLS = ("evaluation", "training", "demo")  # their people are files, counted nowhere
NUMBERED = re.compile(r"\b(persons?|photo|face|region) $", re.IGNORECASE)


def sentences(source: str) -> list[str]:
    """F-strings in which one of the nouns is followed by a value."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            pairs = zip(node.values, node.values[1:], strict=False)
            for text, value in pairs:
                noun = isinstance(text, ast.Constant) and NUMBERED.search(str(text.value))
                if noun and isinstance(value, ast.FormattedValue) and "naming." not in ast.unparse(value):
                    found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_writes_such_a_number_by_hand(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    if parts[0] in SHELLS or parts == ("naming.py",):
        return
    assert not sentences(path.read_text(encoding="utf-8"))


def test_the_first_is_number_one() -> None:
    assert [naming.person(0), naming.photo(1), naming.face(2), naming.region(3)] == [
        "person 1", "photo 2", "face 3", "region 4",
    ]  # fmt: skip
    assert naming.capitalise(naming.person(0)) == "Person 1"
    assert sentences("f'person {number} is late'") and not sentences("f'{naming.person(number)} is late'")


def test_names_from_files_and_requests_can_be_shown_and_encoded() -> None:
    assert naming.printable("Zoë 写真　1 \N{GRINNING FACE}") == "Zoë 写真　1 \N{GRINNING FACE}"
    assert naming.printable("caf\udce9\u202e\x00\x1b[1m\nx") == "caf\\udce9\\u202e\\x00\\x1b[1m\nx"
    shown = naming.word(f"'{'k' * 100_000}' is no field. Use another.")
    assert len(shown) < 120 and shown.startswith("'kkk") and shown.endswith("kk' is no field. Use another.")
    assert len(naming.word("a b " * 100_000)) == 2000
