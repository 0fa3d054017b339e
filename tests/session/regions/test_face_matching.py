"""Which face is whose."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from dp_adapter.session.regions.face_matching import FacePosition, assign_cheapest, match

LEFT, MIDDLE, RIGHT = FacePosition(0.2, 0.3, 0.2), FacePosition(0.5, 0.3, 0.1), FacePosition(0.8, 0.3, 0.2)


@pytest.mark.parametrize("seed", range(20))
def test_the_assignment_is_the_cheapest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = (int(n) for n in rng.integers(1, 6, 2))
    costs = rng.normal(size=(rows, columns)).astype(np.float32)
    found = assign_cheapest(costs)
    assert len(found) == len(set(found.values())) == min(rows, columns)
    wide = costs if rows <= columns else costs.T
    least = min(
        sum(wide[i, order[i]] for i in range(len(wide))) for order in permutations(range(wide.shape[1]), len(wide))
    )
    assert sum(costs[row, column] for row, column in found.items()) == pytest.approx(least, abs=1e-5)


def test_nobody_and_nothing() -> None:
    assert assign_cheapest(np.zeros((0, 3), np.float32)) == assign_cheapest(np.zeros((3, 0), np.float32)) == {}
    assert match([], [0, 1], {0: LEFT}) == match([LEFT], [], {}) == {}


def test_new_persons_take_the_largest_faces_from_left_to_right() -> None:
    assert match([RIGHT, MIDDLE, LEFT], [0, 1], {}) == {0: 2, 1: 0}
    assert match([MIDDLE, RIGHT], [0], {}) == {0: 1}
    assert match([MIDDLE], [0, 1], {}) == {0: 0}, "too few faces"


def test_a_face_is_followed_by_its_place() -> None:
    assert match([LEFT, RIGHT], [0, 1], {0: RIGHT, 1: LEFT}) == {0: 1, 1: 0}
    assert match([FacePosition(0.75, 0.3, 0.2), LEFT], [0], {0: RIGHT}) == {0: 0}, "not the larger or the first"
    assert match([LEFT, RIGHT], [0, 1], {1: LEFT}) == {1: 0, 0: 1}, "a new person takes what is left"
    assert match([RIGHT], [0, 1], {0: LEFT, 1: RIGHT}) == {1: 0}, "a lost face takes nobody else's"


def test_likeness_outweighs_the_place_where_faces_changed_sides() -> None:
    crossed = np.array([[0.1, 0.7], [0.6, 0.0]], np.float32)
    near = {0: FacePosition(0.45, 0.3, 0.2), 1: FacePosition(0.6, 0.3, 0.2)}
    faces = [FacePosition(0.45, 0.3, 0.2), FacePosition(0.6, 0.3, 0.2)]
    assert match(faces, [0, 1], near) == {0: 0, 1: 1}
    assert match(faces, [0, 1], near, crossed) == {0: 1, 1: 0}
    assert match(faces, [0, 1], {}, crossed) == {0: 1, 1: 0}


def test_far_means_the_same_at_every_size() -> None:
    assert LEFT.distance_to(LEFT) == 0
    assert FacePosition(0.2, 0.3, 0.2).distance_to(FacePosition(0.4, 0.3, 0.2)) == pytest.approx(1)
    assert FacePosition(0.2, 0.3, 0.2).distance_to(FacePosition(0.2, 0.3, 0.8)) == pytest.approx(1)
