"""IdentityNet: which file it is, and where a person's keypoints go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dp_adapter.core.regions.region_masks import box_mask
from dp_adapter.core.types import Grid
from dp_adapter.errors import SettingsError, WeightsError
from dp_adapter.identity.crops.keypoint_picture import draw_keypoints
from dp_adapter.identity.faces.face import Face
from dp_adapter.identity.faces.face_quality import quality
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.session import Session
from dp_adapter.session.assembly.identity_net import choose_net, find_net, net_person
from dp_adapter.session.photos.reference_photos import SeenPhoto
from dp_adapter.session.scene import Scene
from dp_adapter.settings import IdentityNet
from dp_adapter.weights.library import Library
from tests import tiny
from tests.session.conftest import Request
from tests.session.test_saved import small_pack

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
POINTS = np.array([[30, 40], [70, 40], [50, 60], [35, 80], [65, 80]], np.float32)
SCENE = Scene("sdxl", 800, 400)


def seen() -> SeenPhoto:
    face = Face(np.array([20, 20, 80, 100], np.float32), POINTS, 0.9)
    picture = np.random.default_rng(0).integers(0, 255, (200, 100, 3), dtype=np.uint8)
    return SeenPhoto(lambda: picture, "0" * 64, (face,), face, quality(picture, face), 1.0)


def centres(hint: Picture) -> NDArray[np.float64]:
    """Middle of each colour's circle, x and y."""
    return np.array([np.argwhere((hint == colour).all(-1)).mean(0)[::-1] for colour in COLOURS])


def test_points_and_limbs() -> None:
    hint = draw_keypoints([POINTS * 4], 400, 400)
    assert np.abs(centres(hint) - POINTS * 4).max() < 1
    assert (hint == (153, 0, 0)).all(-1).any(), "limbs have 0.6 of their colour"
    assert (hint[0, 0] == 0).all()


def test_in_the_photos_own_place() -> None:
    made = net_person(tiny.tokens(), [seen()], None, None, SCENE)
    # The photo of 100 x 200 px is doubled, and in the middle.
    assert made.mask is None and made.hint.shape == (400, 800, 3)
    assert np.abs(centres(made.hint) - (POINTS * 2 + [300, 0])).max() < 3


def test_in_a_drawn_region() -> None:
    mask = box_mask(0.5, 0.2, 1.0, 0.9, Grid(400, 800))[None]
    made = net_person(tiny.tokens(), [seen()], None, mask, SCENE)
    found = centres(made.hint)
    assert (found[:, 0] > 400).all() and (found[:, 1] > 80).all() and (found[:, 1] < 360).all()
    assert made.mask is not None and torch.equal(made.mask, mask)


def test_at_the_face_of_an_init_picture() -> None:
    init = POINTS + np.array([60, 10], np.float32)
    made = net_person(tiny.tokens(), [seen()], init, None, SCENE)
    assert np.abs(centres(made.hint) - init).max() < 6  # circles overlap a little


def test_the_file_is_found_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "ControlNet"
    folder.mkdir()
    library = Library([tmp_path], paths_allowed=False)
    asked = IdentityNet()
    (folder / "canny.safetensors").write_bytes(b"x")
    (folder / "ip-adapter_instant_id_sdxl.bin").write_bytes(b"x")
    assert find_net(asked, library) is None
    with pytest.raises(SettingsError, match="there is no IdentityNet"):
        find_net(replace(asked, use="on"), library)
    net = folder / "control_instant_id_sdxl.safetensors"
    net.write_bytes(b"x")
    assert find_net(asked, library) == net
    assert find_net(replace(asked, model="canny.safetensors"), library) == folder / "canny.safetensors"
    with pytest.raises(WeightsError, match="no model 'absent'"):
        find_net(replace(asked, model="absent"), library)
    (folder / "InstantID-ControlNet.safetensors").write_bytes(b"x")
    with pytest.raises(SettingsError, match="several files"):
        find_net(asked, library)


def test_what_cannot_be_had_is_told(tmp_path: Path) -> None:
    library = Library([tmp_path], paths_allowed=False)
    asked = IdentityNet()
    assert choose_net(asked, library, controls=False) == (
        None,
        ("IdentityNet was left out: no ControlNet is here that it can use.",),
    )
    assert choose_net(asked, library, True) == (
        None,
        ("IdentityNet was left out: it is not among ControlNet's models.",),
    )
    with pytest.raises(SettingsError, match=r"no ControlNet is here that it can use.*'auto', which leaves it out"):
        choose_net(replace(asked, use="on"), library, controls=False)
    for off in (replace(asked, use="off"), replace(asked, use="on", weight=0.0)):
        assert choose_net(off, library, controls=False) == (None, ())
    net = tmp_path / "ControlNet" / "instantid.safetensors"
    net.parent.mkdir()
    net.write_bytes(b"x")
    assert choose_net(asked, library, controls=True) == (net, ())
    assert choose_net(asked, library, controls=False)[0] is None


def test_a_whole_preparation(root: Path, request_of: Request) -> None:
    for pack in ("antelopev2", "buffalo_l"):
        small_pack(root, pack)
    tiny.write(root / "dp_adapter" / "adapter.bin", tiny.family_tensors("faceid-sequence", "sdxl"), "zip")
    net = root / "ControlNet" / "identitynet.safetensors"
    net.parent.mkdir()
    net.write_bytes(b"x")
    session = Session([root], True)
    asked = request_of(variant="instantid", model="adapter.bin")
    made = session.prepare(asked, Scene("sdxl", 128, 128, controls=True))
    assert made.net is not None and made.net.model == net and not made.explanation.notes
    (one,) = made.net.persons
    assert one.tokens is made.injection.identities[0].tokens and one.hint.shape == (128, 128, 3) and one.hint.any()
    without = session.prepare(asked, Scene("sdxl", 128, 128))
    assert without.net is None and without.explanation.notes == (
        "IdentityNet was left out: no ControlNet is here that it can use.",
    )
    with pytest.raises(SettingsError, match="no ControlNet is here that it can use"):
        session.prepare(asked.with_fields({"identity_net.use": "on"}), Scene("sdxl", 128, 128))
    other = session.prepare(asked.with_fields({"variant": "faceid-portrait-unnorm"}), Scene("sdxl", 128, 128))
    assert other.net is None and not other.explanation.notes, "it is InstantID's"
