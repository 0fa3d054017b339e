"""Every way a request can be wrong: which field is named, in which words, and what would be right."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dp_adapter.errors import SettingsError
from dp_adapter.settings import Box, Curve, FaceChoice, Reference, Region, Settings, Span

PHOTO = {"image": "a.png"}

CASES: list[tuple[dict[str, Any], str, Any, str]] = [
    # unknown keys
    ({"wieght": 1}, "wieght", "weight", "Did you mean 'weight'?"),
    ({"span": {"stat": 0.1}}, "span.stat", "start", "there is no such field"),
    ({"references": [{"image": "a", "wheight": 1}]}, "references[0].wheight", "weight", "no such field"),
    ({"levels.up": 0.5}, "levels.up", "levels", "no such field"),
    # wrong types
    ({"weight": "0.8"}, "weight", 0.8, "'0.8' is text, not a number. Use 0.8, without quotes."),
    ({"weight": "7"}, "weight", 2.0, "Use 2, without quotes."),
    ({"weight": "strong"}, "weight", 0.8, "'strong' is not a number"),
    ({"weight": True}, "weight", 0.8, "true is not a number. Use a number from 0 to 2. The default is 0.8."),
    ({"weight": None}, "weight", 0.8, "null is not a number"),
    ({"weight": [1]}, "weight", 0.8, "a list is not a number"),
    ({"target_age": 30.5}, "target_age", 30, "30.5 is not a whole number"),
    ({"target_age": "30"}, "target_age", 30, "Use 30, without quotes."),
    ({"enabled": 1}, "enabled", True, "1 is neither true nor false"),
    ({"model": 3}, "model", "", "3 is not text"),
    ({"blend": 3}, "blend", "auto", "3 is not text"),
    ({"references": "a.png"}, "references", [], "'a.png' is not a list"),
    ({"references": ["a.png"]}, "references[0]", None, "'a.png' is not an object with fields"),
    ({"face": None}, "face", {}, "null is not an object with fields"),
    ({"curve": 1}, "curve", "", "1 is not the text of a curve"),
    ({"levels": {"sites": 3}}, "levels.sites", {}, "3 is not an object of sites and factors"),
    # out of range
    ({"weight": 3.5}, "weight", 2.0, "weight: 3.5 is above the maximum 2. Use 2 or less."),
    ({"weight": 2.0000001}, "weight", 2.0, "2.0000001 is above the maximum 2"),
    ({"weight": 10**5000}, "weight", 2.0, "a number of more than 18 digits is above the maximum 2"),
    ({"references": [PHOTO, {"image": "b", "weight": -1}]}, "references[1].weight", 0.0, "-1 is below the minimum 0"),
    ({"gate": {"up": 0}}, "gate.up", 0.1, "0 is below the minimum 0.1"),
    ({"target_age": 130}, "target_age", 120, "130 is above the maximum 120"),
    ({"weight": math.nan}, "weight", 0.8, "nan is not a number"),
    ({"weight": math.inf}, "weight", 2.0, "inf is above the maximum 2"),
    ({"span": {"end": -math.inf}}, "span.end", 0.0, "-inf is below the minimum 0"),
    ({"levels": {"sites": {"70": 1}}}, "levels.sites['70']", 69, "only 0 to 69"),
    ({"levels": {"sites": {"03": 1}}}, "levels.sites['03']", 0, "no such site"),
    ({"levels": {"sites": {"3": 9}}}, "levels.sites['3']", 2.0, "9 is above the maximum 2"),
    # choices
    ({"blend": "ADD"}, "blend", "add", "'ADD' is not one of auto, add"),
    ({"combine": "zzz"}, "combine", None, "normalised_average, weighted, best. Choose one of them."),
    ({"mode": "custom:"}, "mode", "custom:NAME", "custom:NAME"),
    ({"mode": "custom:../x"}, "mode", "custom:NAME", "is not one of"),
    ({"tracking": {"sources": ["init", "prevew"]}}, "tracking.sources[1]", "preview", "Did you mean 'preview'?"),
    ({"tracking": {"sources": ["init", "init"]}}, "tracking.sources", ("init",), "names one thing twice"),
    # sizes
    ({"model": "x" * 2000}, "model", "x" * 1024, "has 2000 characters, the maximum is 1024"),
    ({"references": [PHOTO] * 33}, "references", None, "has 33 photos, the maximum is 32"),
    ({"tracking": {"moments": [0.1] * 17}}, "tracking.moments", None, "has 17 moments, the maximum is 16"),
    ({"curve": "1@0," * 2000}, "curve", None, "characters, the maximum is 4096"),
    ({"model": "a\0b"}, "model", "ab", "contains NUL"),
    ({"model": "a\ud800"}, "model", "a", "half a character"),
    ({"references": [{}]}, "references[0].image", None, "is missing or empty. Give a path, a data URL, base64"),
    ({"references": [{"image": "identity:../x"}]}, "references[0].image", None, "does not name a saved identity"),
    ({"references": [{"image": "photo:../x"}]}, "references[0].image", None, "does not name a dropped photo"),
    ({"references": [{"image": "photo:" + "A" * 16}]}, "references[0].image", None, "16 hex digits"),
    ({"face": {"like": "photo:" + "0" * 17}}, "face.like", None, "does not name a dropped photo"),
    (
        {"regions": [{"kind": "mask", "mask": "identity:Ada"}]},
        "regions[0].mask",
        None,
        "a saved identity, not a picture",
    ),
    # curves
    ({"curve": "x"}, "curve", None, "'x' is not a point. Write weight@progress"),
    ({"curve": "3@0.5"}, "curve", "2.0@0.5", "the weight 3.0 is not in 0 to 2"),
    ({"curve": "1@0.5, 0@0.5"}, "curve", None, "the progress 0.5 does not come after 0.5"),
    # fields that must agree
    ({"span": {"start": 0.6, "end": 0.5}}, "span.start", 0.5, "0.6 is after the end 0.5. Use 0.5 or less."),
    ({"hires": {"span": {"start": 1, "end": 0.5}}}, "hires.span.start", 0.5, "1 is after the end 0.5"),
    ({"tracking": {"moments": [0.5, 0.3]}}, "tracking.moments[1]", (0.3, 0.5), "0.3 does not come after 0.5"),
    ({"regions": [{"kind": "box"}]}, "regions[0].box", None, "needs it"),
    ({"regions": [{"kind": "mask"}]}, "regions[0].mask", None, "needs it"),
    ({"regions": [{"box": {"x0": 0.5, "x1": 0.2}}]}, "regions[0].box.x1", 0.501, "no area"),
    ({"regions": [{"box": {"y0": 0.5, "y1": 0.5}}]}, "regions[0].box.y1", 0.501, "no area"),
    ({"regions": [{"box": {"x0": 1.0}}]}, "regions[0].box.x0", 0.999, "no area"),
    ({"face": {"choice": "like"}}, "face.like", None, "the face choice 'like' needs it"),
    ({"references": [{**PHOTO, "face": {"choice": "like"}}]}, "references[0].face.like", None, "needs it"),
    ({"references": [PHOTO, {"image": "b", "identity": 2}]}, "references[1].identity", 1, "no photo shows person 2"),
    ({"references": [{"image": "b", "identity": 8}]}, "references[0].identity", 7, "above the maximum 7"),
    ({"references": [PHOTO], "regions": [{"identity": 1}]}, "regions[0].identity", 0, "the photos show 1 person"),
    # versions
    ({"version": 2}, "version", 1, "2 is newer than 1, the newest that this program knows. Update DP-Adapter."),
    ({"version": 0}, "version", 1, "not a version"),
    ({"version": "1"}, "version", 1, "'1' is not a version"),
    ({"version": True}, "version", 1, "true is not a version"),
]


@pytest.mark.parametrize(("data", "field", "nearest", "words"), CASES, ids=[f"{c[1]}-{i}" for i, c in enumerate(CASES)])
def test_refusal_names_field_value_and_nearest(data: dict[str, Any], field: str, nearest: Any, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_dict(data)
    assert caught.value.field == field
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{field}: ")
    assert len(str(caught.value)) < 500
    if nearest is not None:
        assert caught.value.nearest == nearest
        assert type(caught.value.nearest) is type(nearest)


def test_values_near_the_edges_are_accepted() -> None:
    settings = Settings.from_dict(
        {"weight": 2, "target_age": 30.0, "levels": {"sites": {"69": 0}}, "mode": "custom:my Ä-1"}
    )
    assert settings.weight == 2.0
    assert type(settings.weight) is float
    assert type(settings.target_age) is int
    assert settings.levels.sites == ((69, 0.0),)
    assert Span(0.5, 0.5).start == 0.5


def test_construction_in_python_is_checked_too() -> None:
    with pytest.raises(SettingsError, match=r"^weight: 3 is above the maximum 2"):
        Settings(weight=3)
    with pytest.raises(SettingsError, match=r"^start: 0\.9 is after the end 0\.5"):
        Span(0.9, 0.5)
    with pytest.raises(SettingsError, match=r"^span: 0\.5 is not a Span"):
        Settings(span=0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SettingsError, match=r"^curve: '1@0' is not a curve"):
        Settings(curve="1@0")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SettingsError, match=r"^references\[0\]: 'a' is not a Reference"):
        Settings(references=("a",))  # pyright: ignore[reportArgumentType]
    with pytest.raises(SettingsError, match=r"^curve: 'a' is not a number"):
        Curve((("a", 1.0),))  # pyright: ignore[reportArgumentType]
    with pytest.raises(SettingsError, match=r"^like: "):
        FaceChoice("like")
    with pytest.raises(SettingsError, match=r"^mask: "):
        Region("mask")
    assert Box(0, 0, 1, 1) == Box()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 5000, "", "[1]", '"x"', "null"])
def test_text_that_is_not_a_request(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_json(text)
    assert caught.value.field == "settings"
    assert len(str(caught.value)) < 300


def test_nan_in_json_text_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"^span\.end: nan is not a number"):
        Settings.from_json('{"span": {"end": NaN}}')


def test_paths_and_names_that_do_not_exist() -> None:
    settings = Settings(references=(Reference("a.png"),))
    with pytest.raises(SettingsError, match=r"^levels\.upp: there is no such field") as caught:
        settings.with_field("levels.upp", 1)
    assert caught.value.nearest == "levels.up"
    with pytest.raises(SettingsError, match=r"^references\[1\]\.weight: there is no item 1, the request has 1 item"):
        settings.with_field("references[1].weight", 1)
    with pytest.raises(SettingsError, match=r"^wait: there is no such field\. Did you mean 'weight'\?"):
        settings.replace(wait=1)
    with pytest.raises(SettingsError, match=r"^weight: 5 is above"):
        settings.with_field("weight", 5)
    with pytest.raises(SettingsError, match=r"^references\[0\]\.weight: 5 is above"):
        settings.with_field("references[0].weight", 5)


MEANT = {
    "edit": "mode",
    "strength": "weight",
    "scale": "weight",
    "photos": "references",
    "no-face": "no_face",
    "Weight": "weight",
    "best_of": "report.best_of",
    "guidance_start": "span.start",
    "box": "regions[].box",
    "levels.up": "levels",
    "prompt": None,
    "seed": None,
    "x": None,
}


@pytest.mark.parametrize("name", MEANT)
def test_a_wrong_name_is_told_what_it_may_mean_or_nothing(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_dict({name: 1})
    assert caught.value.nearest == MEANT[name]
    assert ("Did you mean" in str(caught.value)) is (MEANT[name] is not None)


def test_a_wrong_name_further_down_is_looked_for_there() -> None:
    meant = {"references[0].strength": "references[].weight", "tracking.grwo": "tracking.grow", "tracking.foo": None}
    for path, nearest in meant.items():
        with pytest.raises(SettingsError) as caught:
            Settings(references=(Reference("a.png"),)).with_field(path, 1)
        assert caught.value.nearest == nearest
    with pytest.raises(SettingsError, match=r"^regions\[0\]\.place: .* There are kind, box, mask, op, identity, "):
        Settings.from_dict({"regions": [{"place": 1}]})
    with pytest.raises(SettingsError, match=r"^references\[0\]\.photo: .* Did you mean 'image'"):
        Settings.from_dict({"references": [{"photo": "a.png"}]})


def test_photographs_stay_out_of_repr() -> None:
    assert "secret" not in repr(Settings(references=(Reference("secret.png"),), regions=(Region(mask="secret"),)))
