"""X/Y/Z axes, made from the fields. A cell's values travel on its own ``p``, as overrides by dotted path.

Every value is checked before the first cell is sampled; the hosts leave a cell blank when it fails later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any, cast

from dp_adapter.errors import DPAdapterError, SettingsError
from dp_adapter.settings import Settings
from dp_adapter.settings.messages import count
from dp_adapter.webui.panel import widget_values
from dp_adapter.webui.parameters.infotext_photos import keep_pictures
from dp_adapter.webui.parameters.xyz_axes import Axis, list_axes

PREFIX = "[DP-Adapter] "
OVERRIDES = "dp_adapter_overrides"
_GRID = "dp_adapter_grid"
_MOST_CELLS = 5000  # all are checked before the first is made, hundreds a second


def settings_of(p: Any, args: Sequence[object]) -> Settings:
    """The request of a job: the script's args, with this cell's overrides.

    Raises:
        SettingsError: a value is refused, or two contradict each other.
    """
    overrides = _overrides(p)
    return apply_overrides(widget_values.settings_of(_switch_on(args, overrides)), overrides)


def _overrides(p: Any) -> Mapping[str, object]:
    return getattr(p, OVERRIDES, {})


def _switch_on(args: Sequence[object], overrides: Mapping[str, object]) -> Sequence[object]:
    """A disabled panel is read leniently, which would lose what is in it where an axis enables it."""
    if overrides.get("enabled") is not True:
        return args
    return [*(args[:1] if any(args[:1]) else [""]), True, *args[2:]]


def apply_overrides(settings: Settings, overrides: Mapping[str, object]) -> Settings:
    """A request with overrides; a path with ``[]`` takes a tuple: one value for all items, or one for each.

    Raises:
        SettingsError: the result is not valid.
    """
    settings = settings.with_fields({path: value for path, value in overrides.items() if "[]" not in path})
    changes: dict[str, object] = {}
    for path, given in overrides.items():
        if "[]" in path:
            name, rest = path.split("[].")
            settings = _with_regions(settings) if name == "regions" else settings
            for index, value in enumerate(_values_by_item(given, len(getattr(settings, name)), path)):
                changes[f"{name}[{index}].{rest}"] = value
    return settings.with_fields(changes)


def _with_regions(settings: Settings) -> Settings:
    """Persons without a region have an automatic one, which an axis may vary too."""
    persons = range(max(1, settings.identities))
    return settings if settings.regions else settings.with_field("regions", [{"identity": n} for n in persons])


def _values_by_item(given: object, items: int, path: str) -> Sequence[object]:
    listed = cast("tuple[object, ...]", given) if isinstance(given, tuple) else (given,)
    if len(listed) not in (1, items):
        problem = f"{count(len(listed), 'value')} for {count(items, 'item')} in the request"
        raise SettingsError(path, problem, "Give one value for all, or one for each, as in 1/0.5.")
    return listed * items if len(listed) == 1 else listed


class AxisGrid:
    """The axes of one X/Y/Z run that are ours; lies on its ``p`` and so on every cell's."""

    def __init__(self) -> None:
        self._axes: list[tuple[Axis, list[object]]] = []
        self._checked = False

    @staticmethod
    def of(p: Any) -> AxisGrid:
        """The grid of a job, begun with its first axis."""
        grid: AxisGrid | None = getattr(p, _GRID, None)
        if grid is None:
            grid = AxisGrid()
            setattr(p, _GRID, grid)
        return grid

    def add(self, axis: Axis, chosen: Sequence[object]) -> None:
        """An axis with all its values. Raises DPAdapterStop where there are none."""
        if not chosen:
            raise _make_stop(f"{PREFIX}{axis.label} has no values. Give some, or choose another axis.")
        self._axes.append((axis, list(chosen)))

    def check(self, p: Any) -> None:
        """Checks the request of every cell, once, before the first one is sampled. Raises DPAdapterStop."""
        if self._checked:
            return
        self._checked = True
        args = _script_args(p)
        if args is None:
            return
        if (cells := prod(len(chosen) for _, chosen in self._axes)) > _MOST_CELLS:
            raise _make_stop(f"X/Y/Z: there are {cells} cells. Give values for at most {_MOST_CELLS}.")
        for cell in product(*(chosen for _, chosen in self._axes)):
            overrides: dict[str, object] = {}
            for (axis, _), value in zip(self._axes, cell, strict=True):
                overrides = add_overrides(overrides, axis, value)
            shown = ", ".join(f"{axis.label} {axis.show(v)}" for (axis, _), v in zip(self._axes, cell, strict=True))
            try:
                # Pictures are not looked at here, and checking megabytes of base64 per cell would take its time.
                base = keep_pictures(
                    widget_values.settings_of(_switch_on(args, overrides)), lambda _text, _path: "0" * 16
                )
                settings = apply_overrides(base, overrides)
            except DPAdapterError as error:
                raise _make_stop(f"X/Y/Z cell with {shown}: {error}") from error
            if settings.enabled and not settings.references:
                raise _make_stop(f"X/Y/Z cell with {shown}: there is no photo. Drop one, or use the axis 'Identity'.")


def add_overrides(overrides: Mapping[str, object], axis: Axis, value: object) -> dict[str, object]:
    """A cell's overrides with one more axis; whoever varies us wants us on, unless an axis says off."""
    return {"enabled": True, **overrides, **axis.changes(value)}


def register() -> None:
    """Adds the axes to the WebUI's X/Y/Z plot; called before each build of the page, when they may be there already."""
    from modules import scripts

    for data in scripts.scripts_data:
        if data.script_class.__module__ == "xyz_grid.py":
            extend(data.module)


def extend(grid_module: Any) -> None:
    """Puts the axes into the list of a host's ``xyz_grid.py``, in place of those of an earlier build."""
    others = [option for option in grid_module.axis_options if not option.label.startswith(PREFIX)]
    grid_module.axis_options[:] = [*others, *(_make_option(axis, grid_module.AxisOption) for axis in list_axes())]


def _make_option(axis: Axis, make: Any) -> Any:
    def read(text: object) -> object:
        try:
            return axis.value(str(text))
        except DPAdapterError as error:
            problem = f"{error.problem.removeprefix(': ')}. {error.hint}".rstrip()
            raise _make_stop(f"{PREFIX}{axis.label}: {problem}") from error

    def split(text: str) -> list[str]:
        try:
            return axis.texts(text)
        except DPAdapterError as error:
            raise _make_stop(f"{PREFIX}{axis.label}: {error}") from error

    def apply(p: Any, value: object, _values: object) -> None:
        AxisGrid.of(p).check(p)
        # New objects: cells are shallow copies of one p, and what one writes into its infotext is no other's.
        setattr(p, OVERRIDES, add_overrides(_overrides(p), axis, value))
        p.extra_generation_params = dict(p.extra_generation_params)

    def shown(_p: Any, _option: Any, value: Any) -> str:
        return f"{axis.label}: {axis.show(value)}"

    def confirm(p: Any, chosen: Sequence[object]) -> None:
        AxisGrid.of(p).add(axis, chosen)

    return make(
        PREFIX + axis.label,
        read,
        apply,
        format_value=shown,
        confirm=confirm,
        cost=axis.cost,
        choices=axis.choices,
        prepare=split,
    )


def _script_args(p: Any) -> list[object] | None:
    """Our script's args of a job; None where it has none."""
    for script in getattr(getattr(p, "scripts", None), "alwayson_scripts", ()):
        if script.title() == "DP-Adapter":
            return list(p.script_args[script.args_from : script.args_to])
    return None


def _make_stop(words: str) -> Exception:
    from dp_adapter.webui.job.stop import make_stop

    return make_stop(words)
