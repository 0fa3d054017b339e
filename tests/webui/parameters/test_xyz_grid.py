"""The X/Y/Z axes in a grid run as the hosts run it: everything is checked first, nothing leaks between cells."""

from __future__ import annotations

import base64
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dp_adapter.session import Session
from dp_adapter.settings import Choice, Flag, Integer, Nullable, Number, Settings, walk_fields
from dp_adapter.webui.host import shared_session
from dp_adapter.webui.panel.widget_values import args_of
from dp_adapter.webui.parameters import infotext, xyz_axes, xyz_grid
from dp_adapter.webui.parameters.xyz_axes import field_axes, list_axes

pytest.importorskip("starlette", reason="the WebUIs bring it, and errors are its HTTPException")
from dp_adapter.webui.job.stop import DPAdapterStop

TWO_PHOTOS = {"references": [{"image": "identity:Ada"}, {"image": "identity:Ada"}]}


@dataclass
class AxisOption:
    """As in the hosts' ``xyz_grid.py``: what an axis is to them."""

    label: str
    type: Any
    apply: Any
    format_value: Any = None
    confirm: Any = None
    cost: float = 0.0
    choices: Any = None
    prepare: Any = None


class Processing:
    """The job, with our script's args behind those of others."""

    def __init__(self, settings: Settings) -> None:
        ours = args_of(settings)
        script = SimpleNamespace(title=lambda: "DP-Adapter", args_from=3, args_to=3 + len(ours))
        other = SimpleNamespace(title=lambda: "ADetailer", args_from=0, args_to=3)
        self.scripts = SimpleNamespace(alwayson_scripts=[other, script])
        self.script_args = (False, {}, 1, *ours)
        self.extra_generation_params: dict[str, str] = {"Tiling": "True"}

    @property
    def settings(self) -> Settings:
        return xyz_grid.settings_of(self, self.script_args[3:])


class Plot:
    """The hosts' grid module with our axes in it."""

    def __init__(self) -> None:
        self.AxisOption = AxisOption
        self.axis_options = [AxisOption("Nothing", str, None), AxisOption("Seed", int, None)]
        xyz_grid.extend(self)

    def option(self, label: str) -> AxisOption:
        return next(option for option in self.axis_options if option.label == xyz_grid.PREFIX + label)

    def run(self, p: Processing, **chosen: str | list[str]) -> list[Settings]:
        """The request of every cell, last axis fastest. A list is what the drop-down gives, a text what is typed.

        What has no axis of its own is written on the axis for any field.
        """
        columns: list[tuple[AxisOption, list[Any]]] = []
        for name, asked in chosen.items():
            label, given = name.replace("_", " "), asked
            if xyz_grid.PREFIX + label not in [option.label for option in self.axis_options]:
                label, given = (
                    "Any field",
                    f"{label}={asked}" if isinstance(asked, str) else [f"{label}={v}" for v in asked],
                )
            option = self.option(label)
            listed = [option.type(one) for one in (option.prepare(given) if isinstance(given, str) else given)]
            option.confirm(p, listed)
            columns.append((option, listed))
        cells: list[list[tuple[AxisOption, Any]]] = [[]]
        for option, listed in columns:
            cells = [[*cell, (option, value)] for cell in cells for value in listed]
        made: list[Settings] = []
        for cell in cells:
            pc = copy(p)
            for option, value in cell:
                option.apply(pc, value, [])
                assert option.format_value(pc, option, value).startswith(option.label.removeprefix(xyz_grid.PREFIX))
            made.append(pc.settings)
            assert pc.extra_generation_params == {"Tiling": "True"}
            pc.extra_generation_params |= infotext.write_parameters(pc.settings, {})
        return made


@pytest.fixture
def plot() -> Plot:
    return Plot()


def request(**changes: Any) -> Processing:
    return Processing(Settings.from_dict({**TWO_PHOTOS, **changes}))


def test_every_numeric_and_choice_field_has_an_axis() -> None:
    def varies(kind: Any) -> bool:
        return isinstance(kind.item if isinstance(kind, Nullable) else kind, Number | Integer | Choice | Flag)

    wanted = {path for path, info in walk_fields() if varies(info.kind) and not path.startswith("report.")}
    axes = dict(field_axes())
    assert wanted | {"model", "mode", "curve"} <= set(axes)
    listed = [axis.label for axis in list_axes()]
    assert len(listed) == len(set(listed)) == 21 and listed[0] == "Identity" and listed[-1] == "Any field"
    assert set(listed[1:-1]) < {axis.label for axis in axes.values()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weight=0.2, 0.4", [{"weight": 0.2}, {"weight": 0.4}]),
        ("weight = 0-1 (+0.5), blend=add", [{"weight": 0.0}, {"weight": 0.5}, {"weight": 1.0}, {"blend": "add"}]),
        ("Mouth weight=0.5, parts.eyes=auto", [{"parts.mouth": 0.5}, {"parts.eyes": None}]),
        ("references[].weight=1/0.5", [{"references[].weight": (1.0, 0.5)}]),
        ("tracking.moments=0.1+0.2, 0.5", [{"tracking.moments": (0.1, 0.2)}, {"tracking.moments": (0.5,)}]),
        ('"curve=0@0, 1@1", 1@0', [{"curve": "0.0@0.0, 1.0@1.0"}, {"curve": "1.0@0.0"}]),
    ],
)
def test_the_axis_for_any_field(text: str, expected: list[dict[str, object]]) -> None:
    axis = list_axes()[-1]
    values = [axis.value(one) for one in axis.texts(text)]
    assert [axis.changes(value) for value in values] == expected
    first = next(iter(expected[0]))
    assert axis.show(values[0]).startswith(f"{first}=")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wieght=1", "there is no field 'wieght'. Did you mean weight?"),
        ("0.5", "'0.5' names no field. Write it as in parts.mouth=0, 0.5, 1"),
        ("weight=3", "Any field: Weight: 3 is above the maximum 2"),
        ("", "has no values"),
    ],
)
def test_what_the_axis_for_any_field_refuses(plot: Plot, text: str, words: str) -> None:
    with pytest.raises(DPAdapterStop) as refused:
        plot.run(request(), Any_field=text)
    assert words in str(refused.value)


@pytest.mark.parametrize("axis", [list_axes()[0], *dict(field_axes()).values()], ids=lambda axis: axis.label)
def test_every_axis_sets_its_field_and_only_that(axis: Any, plot: Plot, session: Session) -> None:
    samples = {"Identity": "Ada", "Model": "m.safetensors", "Mode": "portrait, inpaint", "Weight curve": "1@0.5; 0@1"}
    samples |= {"Photo person": "1", "Region person": "1", "Box left": "0.5", "Box top": "0.5", "Folding memory": "64"}
    samples |= {"Face pass size": "512, 768", "Preview moments": "0.2, 0.2+0.5, none"}
    p = request(regions=[{"kind": "mask", "mask": "photo:0123456789abcdef", "box": {}}])
    p = Processing(
        p.settings.with_fields({"face.like": "identity:Ada", "references[0].face": {}, "tracking.grow": 0.5})
    )
    text = samples.get(axis.label) or (", ".join(axis.choices()) if axis.choices else "1")
    text = text.replace("like", "left")  # needs a further field of each photo
    for settings, one in zip(plot.run(p, **{axis.label: text}), axis.texts(text), strict=True):
        expected = xyz_grid.apply_overrides(p.settings, {"enabled": True, **axis.changes(axis.value(one))})
        assert settings == expected
    assert xyz_grid.OVERRIDES not in vars(p)


def test_persons_are_counted_from_1_on_axes(plot: Plot) -> None:
    axis = dict(field_axes())["regions[].identity"]
    p = request(references=[{"image": "identity:Ada", "identity": n} for n in range(3)], regions=[{}])
    assert axis.texts("1-3") == ["1", "2", "3"]
    assert [axis.value(text) for text in ("2", "person 3")] == [(1,), (2,)]
    assert axis.show((1,)) == "person 2"
    assert [made.regions[0].identity for made in plot.run(p, **{axis.label: "1-3"})] == [0, 1, 2]
    for text in ("0", "9"):
        with pytest.raises(DPAdapterStop, match=f"Region person: there is no person {text}. Use 1 to 8"):
            plot.run(p, **{axis.label: text})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, adapter_file: Path, portrait: Path) -> Path:
    """A models folder with an adapter, a file that is none, and the saved identity Ada."""
    root = tmp_path_factory.mktemp("xyz") / "models"
    (root / "dp_adapter").mkdir(parents=True)
    (root / "dp_adapter" / "m.safetensors").hardlink_to(adapter_file)
    (root / "dp_adapter" / "x.ckpt").write_bytes(b"no weights")
    photo = base64.b64encode(portrait.read_bytes()).decode()
    Session([root], paths_allowed=False).save_identity("Ada", Settings.from_dict({"references": [{"image": photo}]}))
    return root


@pytest.fixture
def session(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """What the axes ask for models and identities."""
    made = Session([folder], paths_allowed=False)
    monkeypatch.setattr(shared_session, "session", lambda: made)
    monkeypatch.setattr(shared_session, "base", lambda: "sd15")
    return made


def test_cells_do_not_leak_into_each_other(plot: Plot) -> None:
    p = request(weight=0.7)
    cells = plot.run(p, Weight="0, 0.5", Blend_mode=["add", "norm"])
    assert [(cell.weight, cell.blend) for cell in cells] == [(0, "add"), (0, "norm"), (0.5, "add"), (0.5, "norm")]
    assert p.settings.weight == 0.7
    assert p.settings.blend == "auto"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.2-1 (+0.2)", [0.2, 0.4, 0.6, 0.8, 1.0]),
        ("0-1 [3]", [0.0, 0.5, 1.0]),
        ("1-0 (-0.5)", [1.0, 0.5, 0.0]),
        ("0-2", [0.0, 1.0, 2.0]),
        ("0.5,, .75 ", [0.5, 0.75]),
        ("0.1-0.7 (+0.1)", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ("0.2\n0.5", [0.2, 0.5]),
        ("0.2, 0.5,\r\n1\r\n\r\n", [0.2, 0.5, 1.0]),
        ('"0.2", "0.5"', [0.2, 0.5]),
        ("+0.5, .25, 1., 5e-1", [0.5, 0.25, 1.0, 0.5]),
        ("0-1 (+0.5), 2", [0.0, 0.5, 1.0, 2.0]),
        ("0-1 [1]", [0.0]),
        ("+1 - 0 ( -0.5 )", [1.0, 0.5, 0.0]),
    ],
)
def test_ranges_as_in_the_hosts_without_their_rounding(plot: Plot, text: str, expected: list[float]) -> None:
    assert [cell.weight for cell in plot.run(request(), Weight=text)] == expected


@pytest.mark.parametrize(
    ("whole", "text", "expected"),
    [
        (False, "-2-2 (+1)", ["-2", "-1", "0", "1", "2"]),
        (True, "-2-2 (+1)", ["-2", "-1", "0", "1", "2"]),
        (True, "-3--1", ["-3", "-2", "-1"]),
        (False, "-.5", ["-0.5"]),
        (True, "1-5 [5]", ["1", "2", "3", "4", "5"]),
        (True, "1-4 [3]", ["1", "2", "4"]),  # int() of numpy.linspace
        (False, "1-4 [3]", ["1", "2.5", "4"]),
        (True, "10", ["10"]),
        (False, "auto", ["auto"]),
    ],
)
def test_ranges_with_signs_and_counts_of_whole_numbers(whole: bool, text: str, expected: list[str]) -> None:
    assert xyz_axes._ranges(whole, text) == expected


@pytest.mark.parametrize("between", [", ", "\n", ",\r\n", "\n\n"])
def test_every_axis_takes_line_breaks(plot: Plot, session: Session, between: str) -> None:
    assert [cell.blend for cell in plot.run(request(), Blend_mode=f"add{between}norm{between}")] == ["add", "norm"]
    assert [cell.enabled for cell in plot.run(request(), Identity=f"none{between}Ada")] == [False, True]
    curves = plot.run(request(), Weight_curve=f'"0@0{between.strip()}\n1@1"{between}1@0')
    assert [str(cell.curve) for cell in curves] == ["0.0@0.0, 1.0@1.0", "1.0@0.0"]
    assert [cell.tracking.moments for cell in plot.run(request(), Preview_moments=f"0.1+0.2{between}0.5")] == [
        (0.1, 0.2),
        (0.5,),
    ]


def test_numbers_that_may_be_automatic(plot: Plot) -> None:
    assert [cell.span.start for cell in plot.run(request(), Start="auto, 0-0.5 (+0.5)")] == [None, 0.0, 0.5]
    ages = plot.run(request(mode="age", target_age=5), Target_age="20-60 (+20)")
    assert [cell.target_age for cell in ages] == [20, 40, 60]


@pytest.mark.parametrize(
    ("axis", "text", "words"),
    [
        ("Weight", "0.5, 3", "Weight: 3 is above the maximum 2. Use 2 or less."),
        ("Weight", "much", "'much' is not a number"),
        ("Weight", "", "has no values"),
        ("Weight", "0-1 (+0)", "makes 0 values"),
        ("Weight", "0-2 (+0.0001)", "makes 20001 values"),
        ("Blend mode", "ad", "Did you mean 'add'?"),
        ("Region sources", "init+camera", "Region sources: 'camera' is not one of init, preview, attention"),
        ("Preview moments", "0.5+0.2", "0.2 does not come after 0.5"),
        ("Strict text region", "maybe", "neither true nor false"),
        ("Weight curve", '"1@0.5, 1@0.2"', "does not come after"),
        ("Photo weight", "1/2/0", "3 values for 2 items"),
        ("Model", "x.ckpt", "x.ckpt cannot be used: "),
        ("Model", "y.safetensors", "There is no model 'y.safetensors'"),
        ("Identity", "Bob", "no saved identity 'Bob'"),
        ("Face choice", "largest, like", "X/Y/Z cell with Any field face.choice=like: face.like"),
    ],
)
def test_every_value_is_checked_before_the_first_cell(
    plot: Plot, session: Session, axis: str, text: str, words: str
) -> None:
    with pytest.raises(DPAdapterStop) as refused:
        plot.run(request(), **{axis: text})
    assert words in str(refused.value)
    assert refused.value.status_code == 422


def test_fields_that_only_go_together_may_stand_on_two_axes(plot: Plot) -> None:
    cells = plot.run(request(), Mode=["age"], Target_age="20, 60")
    assert [(cell.mode, cell.target_age) for cell in cells] == [("age", 20), ("age", 60)]


def test_a_disabled_panel_is_enabled_with_everything_in_it(plot: Plot) -> None:
    p = request(enabled=False, weight=0.9)
    assert not p.settings.enabled
    assert [(cell.enabled, cell.weight, cell.blend) for cell in plot.run(p, Blend_mode=["add"])] == [(True, 0.9, "add")]


def test_identity_axis_compares_with_no_identity(plot: Plot, session: Session) -> None:
    assert plot.option("Identity").choices() == ["none", "Ada"]
    cells = plot.run(Processing(Settings(enabled=False)), Identity=["none", "Ada"], Weight="0.5")
    assert [(cell.enabled, [one.image for one in cell.references]) for cell in cells] == [
        (False, []),
        (True, ["identity:Ada"]),
    ]


def test_without_a_photo_the_grid_does_not_start(plot: Plot) -> None:
    with pytest.raises(DPAdapterStop, match="there is no photo"):
        plot.run(Processing(Settings()), Weight="0.5")


def test_one_value_for_all_photos_or_one_for_each(plot: Plot) -> None:
    cells = plot.run(request(), Photo_weight="0.5, 1/0")
    assert [[one.weight for one in cell.references] for cell in cells] == [[0.5, 0.5], [1.0, 0.0]]


def test_region_axes_vary_automatic_regions_too(plot: Plot) -> None:
    (cell,) = plot.run(request(), Region_grow="0.3")
    assert [(region.kind, region.grow) for region in cell.regions] == [("auto", 0.3)]
    two = {"references": [{"image": "identity:Ada"}, {"image": "identity:Bea", "identity": 1}]}
    (cell,) = plot.run(request(**two), Region_feather="0.1")
    assert [(region.identity, region.feather) for region in cell.regions] == [(0, 0.1), (1, 0.1)]


def test_lists_are_written_with_plus_signs(plot: Plot) -> None:
    cells = plot.run(request(), Region_sources="preview + init, none, attention", Preview_moments="0.1, 0.2+0.6, none")
    sources = [("preview", "init"), (), ("attention",)]
    moments = [(0.1,), (0.2, 0.6), ()]
    assert [(cell.tracking.sources, cell.tracking.moments) for cell in cells] == [
        (s, m) for s in sources for m in moments
    ]
    axis = dict(field_axes())["tracking.sources"]
    assert axis.choices is not None and axis.choices() == [
        "none", "init", "preview", "attention", "init+preview", "init+attention", "preview+attention",
        "init+preview+attention",
    ]  # fmt: skip
    assert axis.show(()) == "none"


def test_parts_and_face_pass_have_axes(plot: Plot) -> None:
    (cell,) = plot.run(request(), Mouth_weight="0.5", Automatic_region_grow="0.2", Face_pass_strength="0.3")
    assert (cell.parts.mouth, cell.tracking.grow, cell.face_pass.strength) == (0.5, 0.2, 0.3)


def test_reload_ui_puts_the_axes_in_place_of_the_old_ones(plot: Plot) -> None:
    first = plot.option("Weight")
    before = [option.label for option in plot.axis_options]
    plot.axis_options.append(AxisOption("Later", str, None))
    listed = plot.axis_options
    xyz_grid.extend(plot)
    assert sorted(option.label for option in plot.axis_options) == sorted([*before, "Later"])
    assert plot.axis_options is listed, "Forge classic's list belongs to another module"
    assert plot.option("Weight") is not first


def test_models_that_do_not_fit_are_not_offered(plot: Plot, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plot.option("Model").choices() == ["m.safetensors"]
    monkeypatch.setattr(shared_session, "base", lambda: "sdxl")
    assert plot.option("Model").choices() == []
    assert plot.option("Model").cost > plot.option("Weight").cost
