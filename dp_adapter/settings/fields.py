"""Frozen dataclasses whose fields say everything about themselves once, and are checked on construction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

from dp_adapter.errors import SettingsError
from dp_adapter.settings.field_types import Kind, Picture, Text
from dp_adapter.settings.messages import refusal, show, within

T = TypeVar("T")
R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class FieldInfo:
    """All there is to say about a field; panel, schema, axes, infotext and docs are made from it.

    Attributes:
        name: attribute name and JSON key.
        label: words in the panel, unique among all fields and stable (ui-config and translations are keyed by it).
        help: one or two sentences.
        kind: what the value may be.
        infotext: key in a picture's parameters, unique and stable.
        default: the value when it is not given.
        automatic: what null stands for where neither user nor mode says anything; None where it depends.
        also: what others call it, for "did you mean"; never read.
    """

    name: str
    label: str
    help: str
    kind: Kind
    infotext: str
    default: Any
    automatic: float | None = None
    also: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        """Whether the field has to be given: its default is an empty text and empty is refused."""
        return isinstance(self.kind, Text) and self.kind.min_length > len(self.default)

    def check(self, value: object) -> object:
        """The value in its normal form.

        Raises:
            SettingsError: under this field's name, with the default as ``nearest`` where nothing is nearer.
        """
        with within(self.name):
            try:
                return self.kind.check(value)
            except SettingsError as error:
                raise self._add_nearest(error) from None

    def read(self, data: object) -> object:
        """Turns the JSON form into an unchecked value; raises as ``check`` does."""
        with within(self.name):
            try:
                return self.kind.read(data)
            except SettingsError as error:
                raise self._add_nearest(error) from None

    def _add_nearest(self, error: SettingsError) -> SettingsError:
        if error.field or error.nearest is not None or self.required:
            return error
        default = self.kind.brief(self.default)
        known = f" The default is {show(default)}." if isinstance(default, int | float | str) else ""
        return refusal(error.problem.removeprefix(": "), error.hint + known, default)


def setting(
    default: T,
    kind: Kind,
    label: str,
    help: str,
    *,
    infotext: str | None = None,
    automatic: float | None = None,
    also: tuple[str, ...] = (),
) -> T:
    """Declares a field of a record. ``infotext`` is "DP-Adapter" and the label in lower case unless given."""
    info = FieldInfo("", label, help, kind, infotext or f"DP-Adapter {label.lower()}", default, automatic, also)
    # Pictures stay out of repr: they are long, and photographs of people have no place in a log.
    return dataclasses.field(default=default, metadata={"setting": info}, repr=not isinstance(kind, Picture))


@dataclass(frozen=True)
class Record:
    """Base of the request's dataclasses: every field is checked and normalised on construction."""

    def __post_init__(self) -> None:
        for info in fields_of(type(self)):
            object.__setattr__(self, info.name, info.check(getattr(self, info.name)))
        self._check_together()

    def _check_together(self) -> None:
        """Checks what no field can tell alone; raises SettingsError with a field name relative to this record."""


@cache
def fields_of(record: type[Record]) -> tuple[FieldInfo, ...]:
    """The fields of a record in declared order."""
    return tuple(dataclasses.replace(f.metadata["setting"], name=f.name) for f in dataclasses.fields(record))


def encode(record: Record, *, changed_only: bool = False) -> dict[str, Any]:
    """The record as plain JSON types; ``changed_only`` leaves out fields at their defaults."""
    values = ((info, getattr(record, info.name)) for info in fields_of(type(record)))
    return {
        info.name: info.kind.brief(value) if changed_only else info.kind.write(value)
        for info, value in values
        if not (changed_only and value == info.default)
    }


def decode(record: type[R], data: object) -> R:
    """Reads a record from plain JSON types; fields that are not given take their defaults.

    Raises:
        SettingsError: not an object, an unknown key, or a value that its field refuses.
    """
    if not isinstance(data, Mapping):
        raise refusal(f"{show(data)} is not an object with fields", "Use an object, as in {…}.")
    infos = {info.name: info for info in fields_of(record)}
    values: dict[str, Any] = {}
    for key, value in cast("Mapping[object, object]", data).items():
        if not isinstance(key, str) or key not in infos:
            raise unknown_key_error(key, record)
        values[key] = infos[key].read(value)
    return record(**values)


def unknown_key_error(key: object, record: type[Record]) -> SettingsError:
    """The error for a key that no field of a record has."""
    from dp_adapter.settings import field_paths  # which is made of records

    if not isinstance(key, str):
        return SettingsError(show(key), "field names are text", "Put it in quotes.")
    return field_paths.no_field_error(record, key, key if len(key) <= 60 else show(key))


@dataclass(frozen=True)
class RecordOf(Kind):
    """A nested record. ``prefix`` goes before the labels and infotext names of its fields where it is used twice."""

    record: type[Record]
    prefix: str = ""

    def check(self, value: object) -> Record:
        if isinstance(value, self.record):
            return value
        raise refusal(f"{show(value)} is not a {self.record.__name__}", f"Use {self.describe()}.")

    def read(self, data: object) -> Record:
        return decode(self.record, data)

    def write(self, value: Any) -> dict[str, Any]:
        return encode(value)

    def brief(self, value: Any) -> dict[str, Any]:
        return encode(value, changed_only=True)

    def schema(self) -> dict[str, Any]:
        return {"$ref": f"#/$defs/{self.record.__name__}"}

    def describe(self) -> str:
        return f"an object with {', '.join(info.name for info in fields_of(self.record))}"
