"""The demo's table: valid requests, words that the small base knows, and no picture made twice."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp_adapter.demo import shots
from dp_adapter.demo.make_pictures import DemoPictures
from dp_adapter.demo.people import PORTRAITS, age_photo
from dp_adapter.demo.shots import Shot
from dp_adapter.errors import WeightsError
from dp_adapter.identity.faces.face import choose
from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.identity.pictures.retouch_old_photo import find_damage
from dp_adapter.session import Scene, Session
from dp_adapter.session.results import acted_regions, face_pass_plan
from dp_adapter.settings import Settings
from tools.small_base import scenes

ANNA, BERT = (shots.request_for(Path("adapter.safetensors"), Path(f"{name}.png")) for name in ("anna", "bert"))
KNOWN = {"a", "background", "black", "clothes", "color", "of", "person", "photo", "serious", "smiling", "and", "white"}


def test_equal_shots_are_one() -> None:
    anna, bert = (shots.shots_of_arms(one, "a person", 7) for one in (ANNA, BERT))
    assert anna["base model"] == bert["base model"] and anna["DP-Adapter"] != bert["DP-Adapter"]
    sweep = shots.shots_of_sweep(ANNA, "a person", (0.0, 0.5, shots.WEIGHT), 7)
    assert sweep[0.0] == anna["base model"] and sweep[shots.WEIGHT] == anna["DP-Adapter"]
    assert len({*anna.values(), *bert.values(), *sweep.values()}) == 6


def test_the_base_knows_the_words() -> None:
    known = set(KNOWN)
    for words in (scenes.COLOURS, scenes.PATTERNS, scenes.PLACES, scenes.SIZES):
        known |= {word for phrase in words for word in phrase.split()}
    for prompt in (*shots.PROMPTS, *(edit.prompt for edit in shots.EDITS)):
        assert set(re.findall(r"[\w-]+", prompt)) <= known, prompt
    for edit in shots.EDITS:
        assert 0 <= edit.person < len(shots.PEOPLE) and len(shots.shots_of_edit(ANNA, edit, 7)) == len(edit.pictures)


def test_the_portraits_are_those_of_their_readme() -> None:
    told = (PORTRAITS / "README.md").read_text(encoding="utf-8")
    files = sorted(PORTRAITS.glob("*.jpg"))
    assert [who.file for who in shots.PEOPLE if who.file] == ["M000312.jpg", "J000032.jpg"]
    assert [path.name for path in files] == ["J000032.jpg", "M000312.jpg"]
    for path in files:
        content = path.read_bytes()
        assert hashlib.sha256(content).hexdigest() in told and f"{len(content):,}" in told and len(content) <= 20_000


def test_the_old_photo_looks_old() -> None:
    session = Session([], paths_allowed=True)
    picture = load_picture(PORTRAITS / "J000032.jpg")
    face = choose(session.photos.faces(picture, session.encoders.yunet))
    found = find_damage(age_photo(picture, face), face)
    assert found.toned and found.tinted and found.grainy and found.marks > 0


def test_a_shot_that_cannot_be_made_ends_it(tiny_folder: Path, portrait: Path) -> None:
    made: list[Shot] = []

    def note(_done: int, _total: int, shot: Shot) -> None:
        made.append(shot)

    absent = shots.request_for(Path("/absent.safetensors"), portrait)
    wanted = [Shot("a person", absent.replace(weight=weight), 7) for weight in (0.5, 0.6, 0.7)]
    with pytest.raises(WeightsError):
        DemoPictures(tiny_folder, workers=1).make(wanted, 1, note)
    assert not made


def test_regions_and_the_face_pass_at_128_px(models: Path, portrait: Path) -> None:
    """A face of 40 px in a preview of 128 px moves the region to itself, and the pass enlarges it to 128 px."""
    with Image.open(portrait) as picture:
        small = np.asarray(picture.convert("RGB").resize((128, 128), box=(64, 0, 384, 320)), np.uint8)
    session = Session([models], paths_allowed=True)
    asked = Settings.from_dict({"references": [{"image": str(portrait)}], "mode": "full_body"})
    prepared = session.prepare(asked, Scene("sd15", 128, 128))
    tracker = prepared.tracker
    assert tracker is not None
    tracker.restart()
    tracker.apply(tracker.look([small], 0.55))
    (face,) = session.encoders.yunet.detect(small)
    region = acted_regions.regions_of(prepared, 0)[0]
    assert region is not None and region.shape == (128, 128)
    x0, y0, x1, y1 = face.box.round().astype(int).tolist()
    assert 35 < face.size < 50 and region[y0:y1, x0:x1].sum() > 0.65 * region.sum() > 800
    part = face_pass_plan.square(face, 128, 128, face_pass_plan.side(asked.face_pass, shots.SIDE, 128, 128))
    assert part.work == 128 and face_pass_plan.enlarge_square(small, part).shape == (128, 128, 3)
