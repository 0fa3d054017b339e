"""The one request object: what the user wants, checked, with nothing heavy imported.

A field is declared once, with label, help, range, default and infotext name; ``walk_fields`` gives them all to the
panel, the axes and the paste fields, ``json_schema`` to the API.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dp_adapter.settings import field_paths
from dp_adapter.settings.container_types import ListOf, Nullable, SiteFactors
from dp_adapter.settings.curve import Curve, CurveText
from dp_adapter.settings.field_types import Choice, Flag, Integer, Kind, Number, Picture, Text
from dp_adapter.settings.fields import FieldInfo, Record
from dp_adapter.settings.nested_records import RecordOf, is_leaf, walk
from dp_adapter.settings.pathway_sections import Companion, IdentityNet, ReferenceAttention, TextSide, WPlus
from dp_adapter.settings.request import VERSION, Settings
from dp_adapter.settings.result_sections import FacePass, Report
from dp_adapter.settings.schema import json_schema
from dp_adapter.settings.sections import (
    Box,
    FaceChoice,
    Gate,
    Hires,
    Levels,
    Parts,
    Performance,
    Reference,
    Region,
    Span,
    Tracking,
)


def walk_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Every field that holds a value, as (dotted path, field), in declared order.

    A list of records comes as a whole (``references``), then its items' fields (``references[].weight``).
    """
    return ((path, info) for path, info in walk(Settings) if is_leaf(info))


def field_at(path: str) -> FieldInfo:
    """The field at a dotted path, with or without item numbers.

    Raises:
        SettingsError: there is none; ``nearest`` is the path most like it.
    """
    return field_paths.find(Settings, path)


def infotext_name(path: str) -> str:
    """The infotext key of the field at ``path``; for items of lists the item's number, from 1, stands at its end."""
    numbers = [f" {int(number) + 1}" for number in re.findall(r"\[(\d+)\]", path)]
    return field_at(path).infotext + "".join(numbers)


__all__ = [
    "VERSION",
    "Box",
    "Choice",
    "Companion",
    "Curve",
    "CurveText",
    "FaceChoice",
    "FacePass",
    "FieldInfo",
    "Flag",
    "Gate",
    "Hires",
    "IdentityNet",
    "Integer",
    "Kind",
    "Levels",
    "ListOf",
    "Nullable",
    "Number",
    "Parts",
    "Performance",
    "Picture",
    "Record",
    "RecordOf",
    "Reference",
    "ReferenceAttention",
    "Region",
    "Report",
    "Settings",
    "SiteFactors",
    "Span",
    "Text",
    "TextSide",
    "Tracking",
    "WPlus",
    "field_at",
    "infotext_name",
    "json_schema",
    "walk_fields",
]
