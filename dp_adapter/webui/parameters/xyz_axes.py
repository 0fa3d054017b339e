"""The axes: those that people plot, and one for any field; how their values are written, checked and shown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, cast

from dp_adapter.errors import DPAdapterError, SettingsError, WeightsError
from dp_adapter.settings import (
    Choice,
    Curve,
    CurveText,
    FieldInfo,
    Flag,
    Integer,
    Kind,
    ListOf,
    Nullable,
    Number,
    Text,
    walk_fields,
)
from dp_adapter.settings.messages import closest, refusal, show, split_list, tidy
from dp_adapter.webui.panel.widget_values import AUTOMATIC_WORDS

_NUMBER = r"[+-]?\s*(?:\d+(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"{_NUMBER}(?:[eE][+-]?\d+)?")
# As the hosts write ranges (re_range and the like in scripts/xyz_grid.py): 0.2-1 (+0.2) steps, 0.2-1 [5] counts.
_RANGE = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*({_NUMBER})\s*\)|\[\s*(\d+)\s*\])?")
_MOST = 1000  # pictures in one direction; a slip of the pen must not fill the memory
_DIGITS = 9  # of a count that is looked at
_COSTS = {"model": 0.6, "variant": 0.6}  # the host changes the costliest axis least often; its checkpoints have 1
_NONE = "none"
_PLOTTED = (
    "model", "mode", "weight", "span.start", "span.end", "curve", "identity_guidance", "text_emphasis",
    "strict_text_region", "blend", "regions[].kind", "regions[].weight", "references[].weight", "structure",
    "lora_weight", "target_age", "expression", "hires.weight", "face_pass.use",
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: without prefix.
        texts: the text of all values -> one text each.
        value: one text -> a checked value; raises DPAdapterError.
        show: a value for the grid's legend.
        changes: a value -> what it sets, by dotted path.
        choices: what the drop-down offers, asked for when it is opened; None for free text.
        cost: of changing the value, 0 to 1.
        numbers: whether values are numbers, of which there are ranges.
    """

    label: str
    texts: Callable[[str], list[str]]
    value: Callable[[str], object]
    show: Callable[[Any], str]
    changes: Callable[[Any], dict[str, object]]
    choices: Callable[[], list[str]] | None = None
    cost: float = 0.0
    numbers: bool = False


def list_axes() -> list[Axis]:
    """What people plot, identity first, and last an axis for any field."""
    axes = dict(field_axes())
    return [_identity_axis(), *(axes[path] for path in _PLOTTED), _any_field_axis(axes)]


def field_axes() -> Iterator[tuple[str, Axis]]:
    """By path one axis for each field that is a number, a choice, a curve, words, or a list of such."""
    for path, info in walk_fields():
        kind = info.kind.item if isinstance(info.kind, Nullable) else info.kind
        if path.startswith("report.") or not (type(kind) is Text or isinstance(kind, _KINDS) or _is_list(kind)):
            continue
        show_one, read_one = partial(_show, info.kind), partial(_check_value, info)
        if "[]" in path:
            show_one, read_one = partial(_show_all, show_one), partial(_read_all, read_one)
        yield (
            path,
            Axis(
                label=info.label,
                texts=_texts(kind),
                value=_check_model if path == "model" else read_one,
                show=show_one,
                changes=partial(_set, path),
                choices=_fitting_models if path == "model" else _choices(kind),
                cost=_COSTS.get(path, 0.0),
                numbers=isinstance(kind, Number | Integer),
            ),
        )


@dataclass(frozen=True)
class _Assignment:
    """A checked value of the axis of some field."""

    path: str
    axis: Axis
    value: Any


def _any_field_axis(axes: Mapping[str, Axis]) -> Axis:
    """Values as in ``parts.mouth=0, 0.5, 1`` or ``blend=add, text_weight=0``: a field stays until another is named."""
    names = {axis.label.casefold(): path for path, axis in axes.items()} | {path: path for path in axes}

    def find(text: str) -> tuple[str, str]:
        """The field's path, empty where none is named, and the value."""
        name, named, value = text.partition("=")
        if not named:
            return "", text
        path = names.get(name.strip().casefold())
        if path is None:
            hint = f"Did you mean {near}?" if (near := closest(name.strip(), names)) else "docs/settings.md has them."
            raise SettingsError("", f"there is no field {show(name.strip())}", hint)
        return path, value.strip()

    def split(text: str) -> list[str]:
        made, last = list[str](), ""
        for part in _names(text):
            path, value = find(part)
            last = path or last
            if not last:
                raise SettingsError("", f"{show(part)} names no field", "Write it as in parts.mouth=0, 0.5, 1.")
            # All else than numbers is one value, commas that stood in quotation marks included.
            values = axes[last].texts(value) if axes[last].numbers else [value]
            made += [f"{last}={one}" for one in values]
        return _limit(made)

    def read(text: str) -> _Assignment:
        path, value = find(text)
        if not path:
            raise SettingsError("", f"{show(text)} names no field", "Write it as in parts.mouth=0.5.")
        try:
            return _Assignment(path, axes[path], axes[path].value(value))
        except DPAdapterError as error:
            raise SettingsError("", f"{axes[path].label}: {error.problem.removeprefix(': ')}", error.hint) from error

    return Axis(
        label="Any field",
        texts=split,
        value=read,
        show=lambda one: f"{one.path}={one.axis.show(one.value)}",
        changes=lambda one: one.axis.changes(one.value),
        cost=max(axis.cost for axis in axes.values()),
    )


_KINDS = (Number, Integer, Choice, Flag, CurveText)


def _is_list(kind: Kind) -> bool:
    """Whether it is a list whose items are single words or numbers, written ``init+preview``."""
    return isinstance(kind, ListOf) and isinstance(kind.item, Choice | Number)


def _set(path: str, value: object) -> dict[str, object]:
    return {path: str(value) if isinstance(value, Curve) else value}


def _choices(kind: Kind) -> Callable[[], list[str]] | None:
    if isinstance(kind, Flag):
        return lambda: ["True", "False"]
    if isinstance(kind, ListOf) and isinstance(kind.item, Choice):
        items = kind.item.choices
        some = [combination for count in range(len(items) + 1) for combination in combinations(items, count)]
        return lambda: ["+".join(combination) or _NONE for combination in some]
    return (lambda: list(kind.choices)) if isinstance(kind, Choice) else None


def _check_value(info: FieldInfo, text: str) -> object:
    """A checked value of the field; numbers that may be automatic take the words for it too."""
    if isinstance(info.kind, Nullable) and text.strip().lower() in AUTOMATIC_WORDS:
        return None
    if _is_list(info.kind):
        text = "" if text.strip().lower() == _NONE else text.replace("+", ",")
    data: Any = info.kind.parse_typed(text)
    try:
        return info.check(info.read(data))
    except SettingsError as error:
        # The field is the axis, which is named by whoever shows this.
        raise refusal(re.sub(rf"^{info.name}(\[\d+\])?: ", "", error.problem), error.hint, error.nearest) from None


def _read_all(read: Callable[[str], object], text: str) -> tuple[object, ...]:
    """``0.5`` for all items, ``1/0.5`` for one after the other."""
    return tuple(read(part) for part in text.split("/"))


def _show(kind: Kind, value: object) -> str:
    if value is None:
        return "automatic"
    if isinstance(kind, ListOf):
        listed = cast("tuple[Any, ...]", value)
        return "+".join(map(kind.item.format, listed)) or _NONE
    return str(value) if isinstance(value, bool) else kind.format(value) or '""'


def _show_all(shown: Callable[[object], str], listed: tuple[object, ...]) -> str:
    return "/".join(map(shown, listed))


def _texts(kind: Kind) -> Callable[[str], list[str]]:
    if isinstance(kind, Number | Integer):
        return partial(_ranges, isinstance(kind, Integer))
    return _words if type(kind) is Text else _names


def _words(text: str) -> list[str]:
    return _limit(split_list(text))


def _names(text: str) -> list[str]:
    """Without empty values, which only words can be."""
    return _limit([value for value in split_list(text) if value])


def _limit(values: list[str]) -> list[str]:
    """Raises SettingsError where they are more than anybody wants pictures of."""
    if len(values) > _MOST:
        raise SettingsError("values", f"there are {len(values)}", f"Give at most {_MOST}.")
    return values


def _ranges(whole: bool, text: str) -> list[str]:
    """Numbers, with ranges written out; empty values are left out.

    Args:
        whole: whether counts make whole numbers, cut off as the hosts do.
    """
    expanded: list[str] = []
    for part in _names(text):
        match = _RANGE.fullmatch(part)
        plain = [tidy(_number(part))] if _PLAIN.fullmatch(part) else [part]
        expanded = _limit([*expanded, *(_expand_range(part, match, whole) if match else plain)])
    return expanded


def _number(text: str) -> float:
    return float("".join(text.split()))


def _expand_range(part: str, match: re.Match[str], whole: bool) -> list[str]:
    low, high, step = _number(match[1]), _number(match[2]), _number(match[3] or "1")
    if match[4]:
        number = int(match[4][:_DIGITS])
        step = (high - low) / (number - 1) if number > 1 else 0.0
    else:
        steps = (high - low) / step + 1e-6 if step else -1.0
        number = int(steps) + 1 if math.isfinite(steps) else 0
    if not (1 <= number <= _MOST and math.isfinite(high - low)):
        example = "Write it as in 0.2-1 (+0.2) or 0.2-1 [5]."
        raise SettingsError("range", f"{show(part)} makes {max(number, 0)} values", example)
    values = [round(low + step * index, 10) for index in range(number)]
    return [tidy(float(int(value)) if whole and match[4] else value) for value in values]


def _fitting_models() -> list[str]:
    """The adapters that fit the loaded checkpoint, and those alone."""
    from dp_adapter.webui.host import shared_session

    base = shared_session.base()
    return [facts.name for facts in shared_session.known_models().listed(base) if not facts.misfit(base)]


def _check_model(text: str) -> str:
    """The name of an adapter that is here and can be used; whether it fits shows when the checkpoint is known."""
    from dp_adapter.webui.host import shared_session

    facts = shared_session.known_models().facts(text)
    if facts.problem:
        raise WeightsError(f"{facts.name} cannot be used: {facts.problem}", "Choose another model.")
    return facts.name


def _identity_axis() -> Axis:
    return Axis(
        label="Identity",
        texts=_names,
        value=_check_identity,
        show=lambda name: name or _NONE,
        changes=_replace_photos,
        choices=_identity_names,
        cost=0.2,
    )


def _identity_names() -> list[str]:
    from dp_adapter.webui.host import shared_session

    return [_NONE, *shared_session.session().identities.names()]


def _check_identity(text: str) -> str:
    """The name of a saved identity; empty for ``none``, the picture without us."""
    from dp_adapter.webui.host import shared_session

    name = text.removeprefix("identity:")
    return "" if name.lower() == _NONE else shared_session.session().identities.header(name).name


def _replace_photos(name: str) -> dict[str, object]:
    return {"references": [{"image": f"identity:{name}"}]} if name else {"enabled": False}
