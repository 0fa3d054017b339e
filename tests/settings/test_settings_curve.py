"""The weight curve: its text and its values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp_adapter.errors import SettingsError
from dp_adapter.settings import Curve

WEIGHTS = st.floats(0, 2)
CURVES = st.dictionaries(st.floats(0, 1), WEIGHTS, max_size=8).map(lambda d: Curve(tuple(sorted(d.items()))))


def test_the_example_of_the_method() -> None:
    curve = Curve.parse("0.0@0.1, 1.0@0.3, 0.8@1.0")
    assert curve.points == ((0.1, 0.0), (0.3, 1.0), (1.0, 0.8))
    assert str(curve) == "0.0@0.1, 1.0@0.3, 0.8@1.0"
    expected = {0.0: 0.0, 0.1: 0.0, 0.2: 0.5, 0.3: 1.0, 0.65: 0.9, 1.0: 0.8}
    assert {p: curve.at(p) for p in expected} == pytest.approx(expected)


def test_no_points_are_one_everywhere_and_one_point_is_constant() -> None:
    assert [Curve.parse("  ").at(p) for p in (0, 0.5, 1)] == [1, 1, 1]
    assert [Curve.parse("0.4@.5").at(p) for p in (0, 0.5, 1)] == [0.4, 0.4, 0.4]


@pytest.mark.parametrize("text", ["1@0;0.5@1", " 1 @ 0 ,0.5 @ 1 ", "1.@0,.5@1.0", "1e0@0,5e-1@1"])
def test_spellings(text: str) -> None:
    assert Curve.parse(text) == Curve(((0.0, 1.0), (1.0, 0.5)))


@pytest.mark.parametrize("text", ["1", "@", "1@", "1@0,", "nan@0", "1@inf", "1_0@0", "0x1@0", "1@0 1@1", "٣@0"])
def test_what_is_not_a_curve(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a point"):
        Curve.parse(text)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("3@0.5", "2.0@0.5"),
        ("1@0, -1@1.5", "1.0@0.0, 0.0@1.0"),
        ("1@0.5, 0.5@0.2", "0.5@0.2, 1.0@0.5"),
        ("1@1e999", "1.0@1.0"),
        ("1@0.1, x", "1.0@0.1"),
    ],
)
def test_nearest_valid_curve(text: str, nearest: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Curve.parse(text)
    assert caught.value.nearest == nearest
    assert str(Curve.parse(nearest)) == nearest


def test_too_many_points() -> None:
    with pytest.raises(SettingsError, match="has 65 points, the maximum is 64"):
        Curve(tuple((i / 64, 1.0) for i in range(65)))


@given(CURVES)
def test_text_round_trip_is_exact(curve: Curve) -> None:
    assert Curve.parse(str(curve)) == curve


@given(CURVES, st.floats(0, 1))
def test_values_pass_through_the_points_and_stay_between_neighbours(curve: Curve, progress: float) -> None:
    for at, weight in curve.points:
        assert curve.at(at) == weight
    low = [w for p, w in curve.points if p <= progress][-1:]
    high = [w for p, w in curve.points if p >= progress][:1]
    around = low + high or [1.0]
    assert min(around) - 1e-9 <= curve.at(progress) <= max(around) + 1e-9


@pytest.mark.parametrize("text", ["0@0.1\n1@0.3", "0@0.1,\n1@0.3\n", "0@0.1; \r\n1@0.3", " 0@0.1 ,1@0.3 "])
def test_points_on_lines_of_their_own(text: str) -> None:
    assert Curve.parse(text) == Curve(((0.1, 0.0), (0.3, 1.0)))
