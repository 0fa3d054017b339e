"""The parts of ``prepare``: people by likeness, near duplicates, captions, words from measurements, bounded shards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp_adapter.errors import SettingsError
from dp_adapter.identity.faces.detector import YuNet
from dp_adapter.identity.faces.face_encoders import SFace
from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.training.prepare import face_groups
from dp_adapter.training.prepare.examine_picture import perceptual_hash
from dp_adapter.training.prepare.face_groups import find_near_duplicates, measure_closeness
from dp_adapter.training.prepare.find_captions import Captions
from dp_adapter.training.prepare.measured_captions import write_sentence
from dp_adapter.training.prepare.prepare_options import PrepareOptions
from dp_adapter.training.prepare.shard_writer import remove_shards, write_shards
from dp_adapter.training.prepare.statistics_page import make_histogram


def test_two_photographs_of_16_people(people: list[Path]) -> None:
    pictures = [load_picture(path) for path in people]
    detector, encoder = YuNet(tiles=False, threads=1), SFace(threads=1)
    faces = [detector.detect(picture)[0] for picture in pictures]
    vectors = np.stack([encoder.embed(picture, face) for picture, face in zip(pictures, faces, strict=True)])
    numbers = face_groups.group_people(vectors, PrepareOptions().same)
    assert numbers.tolist() == [i // 2 for i in range(32)]
    hashes = [perceptual_hash(picture, face) for picture, face in zip(pictures, faces, strict=True)]
    differing = [(a ^ b).bit_count() for a, b in zip(hashes[::2], hashes[1::2], strict=True)]
    assert min(differing) > PrepareOptions().near_bits
    smaller = pictures[0][8:-20:1, 12:-6]  # cut off at the edges
    assert (perceptual_hash(smaller, detector.detect(smaller)[0]) ^ hashes[0]).bit_count() <= PrepareOptions().near_bits


def test_people_is_average_linkage_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    random = np.random.default_rng(0)
    centres = random.normal(size=(9, 16))
    vectors = np.repeat(centres, 5, 0) + 0.7 * random.normal(size=(45, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    monkeypatch.setattr(face_groups, "_CELLS", 200)
    found = face_groups.group_people(vectors, 0.5)
    tree = hierarchy.linkage(vectors.astype(np.float64), "average", "cosine")
    expected = hierarchy.fcluster(tree, 0.5, "distance")
    assert ((found[:, None] == found) == (expected[:, None] == expected)).all()
    assert found[0] == 0
    assert 1 < found.max() < 44
    apart = measure_closeness(vectors, found, 0.5)
    cosines = vectors @ vectors.T
    members = np.flatnonzero(found == 0)
    inside = cosines[np.ix_(members, members)]
    assert apart.within[0] == pytest.approx((inside.sum() - len(members)) / (len(members) * (len(members) - 1)), 1e-4)
    assert apart.between < 0.5


def test_of_near_duplicates_the_best_is_kept() -> None:
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    hashes = np.array([0b0, 0b11, 0b1111_1111_1111, 0b0], np.uint64)
    order = np.array([1, 0, 2, 3], np.intp)
    assert find_near_duplicates(vectors, hashes, order, 9, 0.9).tolist() == [1, 1, 2, 3]


def record(key: str, size: int) -> dict[str, Any]:
    return {"__key__": key, "json": b"{}", "jpg": b"x" * size}


def test_shards_are_bounded_and_told_by_their_hashes(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [record(str(i), 20_000) for i in range(5)], 60_000)
    assert [shard.keys for shard in shards] == [("0", "1"), ("2", "3"), ("4",)]
    for shard in shards:
        written = (tmp_path / shard.name).read_bytes()
        assert len(written) == shard.size <= 60_000
        assert hashlib.sha256(written).hexdigest() == shard.sha256
    assert len(write_shards(tmp_path, [record("a", 90_000)], 60_000)) == 1
    remove_shards(tmp_path)
    assert not list(tmp_path.iterdir())


def test_captions_of_files_and_tables(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.json").write_text('{"caption": " a man\\n reads ", "age": 40, "tags": []}', encoding="utf-8")
    (tmp_path / "a" / "2.json").write_text("[1", encoding="utf-8")
    rows = [{"file_name": "a\\3.jpg", "text": "a woman", "person": "Ann"}, {"file_name": "a/4.jpg", "text": ""}]
    table = tmp_path / "table.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    captions = Captions(tmp_path, table)
    told = captions.find("a/1.jpg", {})
    assert (told.caption, told.origin, told.other_fields) == ("a man reads", "sidecar", {"age": 40})
    assert captions.find("a/3.jpg", {}).caption == "a woman"
    assert captions.find_person("a/3.jpg") == "Ann"
    fields = {"framing": "wide", "hair": "brown", "glasses": True, "background": "orange"}
    made = captions.find("a/2.jpg", fields)
    assert made.origin == "measured"
    assert made.caption == write_sentence(fields)
    assert captions.unreadable == 1
    assert captions.find("a/4.jpg", fields).origin == "measured"
    with pytest.raises(SettingsError, match=r"names none of the pictures"):
        captions.check(["b.jpg"], False)
    with pytest.raises(SettingsError, match=r"1 pictures have no 'person'"):
        captions.check(["a/3.jpg", "a/4.jpg"], True)
    with pytest.raises(SettingsError, match="table of people is missing"):
        Captions(tmp_path).check(["a/3.jpg"], True)
    with pytest.raises(SettingsError, match="no column 'photo'"):
        Captions(tmp_path, table, "photo")
    other = tmp_path / "other.csv"
    other.write_text("path,caption\na/3.jpg,x\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="no column 'words'"):
        Captions(tmp_path, other, None, "words")
    table.write_text("[1]", encoding="utf-8")
    with pytest.raises(SettingsError, match="not an object"):
        Captions(tmp_path, table)


CAPTION = "a portrait of Zoë, smiling – CAPTION"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("name", ["1.txt", "1.caption", "1.cap", "1.TXT", "1.jpg.txt", "1.json"])
def test_captions_in_files_and_encodings_that_users_have(tmp_path: Path, name: str, encoding: str) -> None:
    text = json.dumps({"caption": CAPTION}, ensure_ascii=False) if name.endswith(".json") else f"{CAPTION}\r\n"
    (tmp_path / name).write_bytes(text.encode(encoding))
    captions = Captions(tmp_path)
    words = captions.find("1.jpg", {})
    assert (words.caption, words.origin, captions.problems) == (CAPTION, "sidecar", {})


def test_captions_that_cannot_be_read_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes("женщина улыбается".encode("cp1251"))
    (tmp_path / "1.caption").write_text("a woman", encoding="utf-8")
    (tmp_path / "2.txt").write_bytes(b"x" * (2**20 + 1))
    captions = Captions(tmp_path)
    assert [captions.find("1.jpg", {}).caption for _ in range(2)] == ["a woman"] * 2
    assert captions.find("2.jpg", {"framing": "wide"}).origin == "measured"
    assert captions.unreadable == 2
    assert captions.problems[tmp_path / "1.txt"] == "its encoding cannot be told, save it as UTF-8"
    assert captions.problems[tmp_path / "2.txt"] == "it is larger than 1 MiB"


def test_tables_as_other_programs_write_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    kohya = tmp_path / "meta_cap.json"
    kohya.write_text(json.dumps({str(tmp_path / "a" / "1"): {"caption": "one"}, "a/2.jpg": {"caption": "two"}}))
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"file": "a/1.jpg", "text": "one"}, {"file": "a/2.jpg", "text": "two"}], indent=1))
    excel = tmp_path / "excel.csv"
    excel.write_bytes("file;caption\r\na/1.jpg;one\r\na\\2.jpg;two\r\n".encode("utf-16"))
    for table in (kohya, listed, excel):
        captions = Captions(tmp_path, table)
        captions.check(["a/1.jpg", "a/2.jpg"], False)
        assert [captions.find(f"a/{n}.jpg", {}).caption for n in (1, 2)] == ["one", "two"], table.name


def test_a_sentence_says_what_is_known_and_no_more() -> None:
    assert write_sentence({"framing": "wide", "photo": "colour"}) == "a wide photo of a person"
    fields = {
        "framing": "close-up",
        "photo": "black-and-white",
        "hair": "no",
        "glasses": True,
        "facing": "turned to the left",
    }
    assert (
        write_sentence(fields) == "a close-up black-and-white photo of a bald person with glasses, turned to the left"
    )
    fields = {"framing": "half-length", "hair": "grey", "glasses": False, "clothes": "red", "background": "orange"}
    assert (
        write_sentence(fields)
        == "a half-length photo of a person with grey hair in red clothes, against an orange background"
    )


def test_a_histogram_counts_what_is_beyond_its_ends() -> None:
    counted = make_histogram("x", [-1, 0, 5, 20], 0, 10)
    assert sum(counted.bars) == 4
    assert counted.bars[-1] == 1
    assert make_histogram("x", [], 0, 1).median == 0
