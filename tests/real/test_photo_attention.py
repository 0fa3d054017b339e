"""The picture's self-attention to the photo, in a running WebUI: its own VAE encodes the photo."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.real.conftest import HIRES, WebUI, largest

pytestmark = pytest.mark.real


def looking(person: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Photo attention alone: the identity's own weight is 0."""
    return {**person, "weight": 0.0, "reference_attention": {"weight": 1.0}, **fields}


def test_it_changes_the_picture_and_leaves_nothing_behind(webui: WebUI, person: dict[str, Any]) -> None:
    plain = webui.one()
    made = webui.one(looking(person))
    assert largest(made, plain) > 3
    assert largest(made, webui.one(looking(person))) == 0
    assert largest(plain, webui.one()) == 0
    assert largest(plain, webui.one(looking(person, reference_attention={"weight": 0.0}))) == 0


def test_it_keeps_to_the_region(webui: WebUI, person: dict[str, Any]) -> None:
    box = {"kind": "box", "box": {"x0": 0.0, "x1": 0.375}}
    plain = webui.one(width=256, steps=2)
    made = webui.one(looking(person, regions=[box], strict_text_region=True), width=256, steps=2)
    difference = np.abs(made - plain)
    assert difference[:, :96].mean() > 3 * difference[:, 160:].mean()


def test_batches_and_the_hires_pass(webui: WebUI, person: dict[str, Any]) -> None:
    made = webui.make(looking(person), batch_size=2)
    plain = webui.make(batch_size=2)
    assert all(largest(one, other) > 3 for one, other in zip(made.pictures, plain.pictures, strict=True))
    assert largest(webui.one(looking(person), **HIRES), webui.one(**HIRES)) > 3
