"""Frozen dataclasses whose fields say everything about themselves once, and are checked on construction."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from dp_adapter.errors import SettingsError
from dp_adapter.settings.field_types import Kind, Picture, Text
from dp_adapter.settings.messages import refusal, show, within

T = TypeVar("T")


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
