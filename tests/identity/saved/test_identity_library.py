"""Files of saved identities: written whole, found by name, refused in words."""

from __future__ import annotations

import io
import json
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from dp_adapter.errors import IdentityError, SettingsError
from dp_adapter.identity.faces.face_quality import Quality
from dp_adapter.identity.saved import saved_identity_file
from dp_adapter.identity.saved.identity_library import FOLDER, IdentityLibrary
from dp_adapter.identity.saved.saved_identity import FaceView, SavedIdentity, SavedPhoto
from dp_adapter.settings import Reference

RANDOM = np.random.default_rng(0)
Tensors = dict[str, NDArray[Any]]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def numbers(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def photo(digest: str, weight: float = 1.0) -> SavedPhoto:
    quality = Quality(100.0, 300.0, 5.0, -3.0, 0.5)
    clip = {"clip/40x2x24/face/embeds": numbers(24), "clip/40x2x24/face/hidden": numbers(5, 40)}
    views = {
        "yunet": FaceView(2, 1, (1.5, 2.0, 30.25, 40.0), quality, {"sface": numbers(128), **clip}),
        "insightface/buffalo_l": FaceView(1, 0, (1, 2, 30, 40), quality, {"arcface/buffalo_l/raw": numbers(512)}),
    }
    return SavedPhoto(digest * 64, weight, views)


def someone(name: str = "Anna", digests: str = "ab") -> SavedIdentity:
    return SavedIdentity(
        name=name,
        created="2026-01-02T03:04:05+00:00",
        digest="",
        thumbnail=png(),
        encoders={"sface": "0" * 16, "arcface/buffalo_l": "1" * 16, "clip/40x2x24": "2" * 16},
        hashes=tuple(digest * 64 for digest in digests),
        photos=tuple(photo(digest, 0.5) for digest in digests),
        zeros={"clip/40x2x24": numbers(5, 40)},
    )


@pytest.fixture
def library(tmp_path: Path) -> IdentityLibrary:
    return IdentityLibrary([tmp_path])


def path_of(tmp_path: Path, name: str) -> Path:
    return tmp_path / FOLDER / f"{name}.safetensors"


def test_it_comes_back_as_it_was(library: IdentityLibrary) -> None:
    made = someone()
    saved = library.save(made)
    for back in (saved, library.load("Anna")):
        assert (back.name, back.created, back.thumbnail) == (made.name, made.created, made.thumbnail)
        assert back.encoders == made.encoders and back.hashes == made.hashes and len(back.digest) == 64
        for one, other in zip(back.photos, made.photos, strict=True):
            assert (one.digest, one.weight) == (other.digest, other.weight)
            for detector, view in other.views.items():
                seen = one.views[detector]
                assert (seen.faces, seen.chosen, seen.box, seen.quality) == (
                    view.faces,
                    view.chosen,
                    view.box,
                    view.quality,
                )
                assert seen.vectors.keys() == view.vectors.keys()
                assert all(np.array_equal(seen.vectors[key], view.vectors[key]) for key in view.vectors)
        assert np.array_equal(back.zeros["clip/40x2x24"], made.zeros["clip/40x2x24"])
    header = library.header("Anna")
    assert (header.digest, header.hashes, header.thumbnail) == (saved.digest, saved.hashes, saved.thumbnail)


def test_vectors_by_what_a_checkpoint_takes() -> None:
    views = photo("a").views
    raw = views["insightface/buffalo_l"].face("arcface/buffalo_l/raw")
    normed = views["insightface/buffalo_l"].face("arcface/buffalo_l/normed")
    assert raw is not None and normed is not None and normed.dtype == np.float32
    assert np.array_equal(normed, raw / np.linalg.norm(raw))
    yunet = views["yunet"]
    assert yunet.face("arcface/buffalo_l/normed") is None
    found = yunet.find("clip/", "/face/hidden", 40)
    assert found is not None and found[0] == "clip/40x2x24" and found[1].shape == (5, 40)
    assert yunet.find("clip/", "/face/hidden", 24) is None and yunet.find("clip/", "/photo/hidden", 40) is None


def test_eva_clips_hidden_states_are_kept_in_half_precision(library: IdentityLibrary) -> None:
    name, pooled = "eva/32x21x24/face/", numbers(24)
    for values in (numbers(5, 10, 32), 1e6 * numbers(5, 10, 32)):  # the latter is more than half precision holds
        one = photo("a")
        view = replace(one.views["yunet"], vectors={name + "pooled": pooled, name + "hidden": values})
        made = replace(someone(digests="a"), photos=(replace(one, views={**one.views, "yunet": view}),))
        library.save(made, replace=True)
        view = library.load("Anna").photos[0].views["yunet"]
        back = view.find("eva/", "/face/hidden", 32)
        assert back is not None and back[0] == "eva/32x21x24" and np.array_equal(view.vectors[name + "pooled"], pooled)
        assert back[1].dtype == np.float32 and np.allclose(back[1], values, rtol=1e-3, atol=1e-3)
        library.save(replace(library.load("Anna"), name="Copy"), replace=True)
        copy = library.load("Copy").photos[0].views["yunet"].find("eva/", "/face/hidden", 32)
        assert copy is not None and np.array_equal(copy[1], back[1]), "nothing more is lost when it is saved again"


def test_the_digest_is_the_contents(library: IdentityLibrary) -> None:
    made = someone()
    first = library.save(made)
    assert library.save(replace(made, name="Berta", created="later")).digest == first.digest
    assert library.save(replace(made, name="Clara", photos=made.photos[::-1])).digest != first.digest


def test_names(library: IdentityLibrary, tmp_path: Path) -> None:
    assert library.names() == ()
    for name in ("Zoe", "anna", "Änne", "美咲 2", "under_score-x"):
        library.save(someone(name))
    (tmp_path / FOLDER / "notes.txt").write_text("x")
    (tmp_path / FOLDER / "a.b.safetensors").write_text("x")  # no request can name it
    assert set(library.names()) == {"anna", "under_score-x", "Zoe", "Änne", "美咲 2"}
    assert library.names()[0] == "anna"
    assert library.load(unicodedata.normalize("NFD", "Änne")).name == "Änne"
    assert library.load("ANNA").name == "anna", "as on Windows and macOS"


def test_a_file_name_with_composed_accents_is_found(library: IdentityLibrary, tmp_path: Path) -> None:
    library.save(someone("Anna"))
    path_of(tmp_path, "Anna").rename(path_of(tmp_path, unicodedata.normalize("NFD", "Éva")))
    assert library.names() == ("Éva",) and library.load("Éva").hashes


BAD_NAMES = [
    "", " ", "../x", "a/b", "a\\b", "/etc/x", "C:x", ".", "..", ".hidden", "a.b", "Anna ", "Anna.", "a\0b", "a\nb",
    "-a", "x" * 65, "\U00020000" * 60, "CON", "con", "nul", "Com1", "LPT9", "COM¹", "a:b", "a*", "a\u202eb",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_bad_names_are_refused(library: IdentityLibrary, tmp_path: Path, name: str) -> None:
    with pytest.raises(IdentityError) as caught:
        library.save(someone(name))
    assert len(str(caught.value)) < 300
    library.save(someone("Anna"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(IdentityError):
        library.rename("Anna", name)
    for call in (library.load, library.header, library.delete, library.state):
        with pytest.raises(IdentityError, match="no saved identity"):
            call(name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a", "0", "_x", "Ada L-1", "美" * 60, "CONNY", "COM10", "x" * 64])
def test_a_name_that_can_be_saved_can_be_asked_for(library: IdentityLibrary, name: str) -> None:
    library.save(someone(name))
    Reference(image=f"identity:{name}")
    with pytest.raises(SettingsError):
        Reference(image="identity:../x")
    assert library.names() == (name,)


def test_nothing_is_overwritten_unasked(library: IdentityLibrary, tmp_path: Path) -> None:
    first = library.save(someone("Anna", "a"))
    for name in ("Anna", "ANNA"):
        with pytest.raises(IdentityError, match="already a saved identity 'Anna'"):
            library.save(someone(name, "b"))
        with pytest.raises(IdentityError, match="already"):
            library.require_free(name)
    assert library.load("Anna").digest == first.digest
    assert library.save(someone("ANNA", "b"), replace=True).name == "Anna"
    assert library.load("Anna").hashes == ("b" * 64,)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["Anna.safetensors"]


def test_renaming(library: IdentityLibrary) -> None:
    library.save(someone("Anna"))
    library.save(someone("Berta"))
    with pytest.raises(IdentityError, match="already a saved identity 'Berta'"):
        library.rename("Anna", "berta")
    library.rename("Anna", "ANNA")
    library.rename("Berta", "Clara")
    assert library.names() == ("ANNA", "Clara") and library.load("ANNA").name == "ANNA"
    library.delete("Clara")
    assert library.names() == ("ANNA",)
    with pytest.raises(IdentityError, match=r"no saved identity 'Anno'. Did you mean 'ANNA'|Choose one of: ANNA"):
        library.delete("Anno")


def test_several_roots(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    IdentityLibrary([two]).save(someone("Anna", "a"))
    IdentityLibrary([two]).save(someone("Berta", "b"))
    both = IdentityLibrary([one, two])
    both.save(someone("Clara", "c"))
    both.save(someone("Berta", "d"), replace=True)
    assert both.names() == ("Anna", "Berta", "Clara") and IdentityLibrary([one]).names() == ("Clara",)
    assert IdentityLibrary([two]).load("Berta").hashes == ("d" * 64,), "replaced where it was"
    IdentityLibrary([one]).save(someone("Anna", "e"))
    assert both.load("Anna").hashes == ("e" * 64,), "the first root wins"
    with pytest.raises(IdentityError, match="no models folder"):
        IdentityLibrary([]).save(someone())


def test_found_by_photo(library: IdentityLibrary, tmp_path: Path) -> None:
    library.save(someone("Anna", "ab"))
    library.save(someone("Berta", "c"))
    path_of(tmp_path, "Aaa").write_bytes(b"damaged")
    assert library.with_photo("b" * 16) == library.with_photo("a" * 64) == "Anna"
    assert library.with_photo("c" * 16) == "Berta"
    for digest in ("d" * 16, "b" * 15, "B" * 16, "", "../../x"):
        assert library.with_photo(digest) is None


def edited(path: Path, change: Callable[[dict[str, str], Tensors], None], sign: bool = True) -> None:
    """Rewrites a file as somebody would who knows the format; ``sign`` brings the digest up to date."""
    with safe_open(str(path), "np") as file:
        metadata = dict(file.metadata() or {})
        tensors: Tensors = {key: np.array(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    if sign:
        photos, encoders = metadata.get("photos", ""), metadata.get("encoders", "")
        metadata["digest"] = saved_identity_file.content_digest(photos, encoders, tensors)
    save_file(tensors, str(path), metadata)


def retold(**changes: object) -> Callable[[dict[str, str], Tensors], None]:
    """Changes fields of the first photo."""

    def change(metadata: dict[str, str], tensors: Tensors) -> None:
        photos = json.loads(metadata["photos"])
        photos[0].update(changes)
        metadata["photos"] = json.dumps(photos)

    return change


def with_tensor(key: str, value: NDArray[Any]) -> Callable[[dict[str, str], Tensors], None]:
    return lambda metadata, tensors: tensors.__setitem__(key, value)


SFACE = "photos.0.yunet.sface"
CRAFTED: list[tuple[Callable[[dict[str, str], Tensors], object], str]] = [
    (lambda metadata, tensors: metadata.pop("format"), "not a saved identity of DP-Adapter"),
    (lambda metadata, tensors: metadata.update(format="other"), "not a saved identity"),
    (lambda metadata, tensors: metadata.update(version="2"), "has version '2' of the format.*Update DP-Adapter"),
    (lambda metadata, tensors: metadata.pop("photos"), "damaged"),
    (lambda metadata, tensors: metadata.update(photos="[]"), "damaged.*0 photos"),
    (lambda metadata, tensors: metadata.update(photos="{"), "damaged"),
    (lambda metadata, tensors: metadata.update(photos="[" * 100_000), "damaged"),
    (lambda metadata, tensors: metadata.update(photos="7"), "damaged"),
    (lambda metadata, tensors: metadata.update(encoders="[1]"), "damaged"),
    (lambda metadata, tensors: metadata.pop("created"), "damaged"),
    (lambda metadata, tensors: tensors.pop("thumbnail"), "damaged"),
    (with_tensor("thumbnail", np.zeros(20, np.uint8)), "no small PNG"),
    (with_tensor("thumbnail", np.frombuffer(png() + bytes(2**20), np.uint8)), "no small PNG"),
    (lambda metadata, tensors: tensors.pop(SFACE), "damaged.*the same vectors"),
    (with_tensor(SFACE, np.full(128, np.nan, np.float32)), "finite 32-bit"),
    (with_tensor(SFACE, np.zeros(128, np.float32)), "its vector sface is nothing but zeros"),
    (with_tensor(SFACE, np.ones(128, np.float64)), "finite 32-bit"),
    (
        with_tensor(SFACE, np.ones((1, 1, 128), np.float32)),
        r"its vector sface has the shape \[1, 1, 128\], not \[128\]",
    ),
    (with_tensor(SFACE, np.ones(0, np.float32)), r"the shape \[0\], not \[128\]"),
    (with_tensor(SFACE, np.ones(64, np.float32)), r"the shape \[64\], not \[128\]"),
    (with_tensor(SFACE, np.full(128, 3e38, np.float32)), "its vector sface holds 3e.38"),
    (with_tensor(SFACE, np.full(128, 1e-30, np.float32)), "nothing but zeros"),
    (with_tensor("zeros.clip/40x2x24", np.ones((4, 40), np.float32)), "clip/40x2x24 have 4 and 5 tokens"),
    (with_tensor("zeros.clip/40x2x24", np.ones(1, np.int64)), r"the shape \[1\], not \[any, 40\]"),
    (with_tensor("photos.x", np.ones(1, np.float32)), "damaged"),
    (lambda metadata, tensors: metadata.update(encoders='{"sface": "\\ud800"}'), "name or version in it is none"),
    (lambda metadata, tensors: metadata.update(encoders='{"sface": 7}'), "name or version in it is none"),
    (lambda metadata, tensors: metadata.update(created="<b>"), "name or version in it is none"),
    (retold(weight=0), "the weight 0"),
    (retold(weight="NaN"), "the weight nan"),
    (retold(digest="../../x"), "64 hex digits"),
    (retold(digest=["a"] * 64), "damaged"),
    (retold(views={}), "damaged"),
    (retold(views={"yunet": {"faces": 1, "chosen": 0, "box": [0, 0, 1], "quality": {}}}), "damaged"),
    (lambda metadata, tensors: metadata.update(photos=metadata["photos"].replace("30.25", "Infinity")), "infinite"),
]


@pytest.mark.parametrize("case", range(len(CRAFTED)))
def test_crafted_files_are_refused_in_words(library: IdentityLibrary, tmp_path: Path, case: int) -> None:
    change, words = CRAFTED[case]
    library.save(someone())
    edited(path_of(tmp_path, "Anna"), change)  # type: ignore[arg-type]
    with pytest.raises(IdentityError, match=words) as caught:
        library.load("Anna")
    assert len(str(caught.value)) < 400 and "Anna" in str(caught.value)


def test_one_changed_number_is_noticed(library: IdentityLibrary, tmp_path: Path) -> None:
    def change(metadata: dict[str, str], tensors: Tensors) -> None:
        tensors[SFACE][5] += 1e-6

    library.save(someone())
    edited(path_of(tmp_path, "Anna"), change, sign=False)
    with pytest.raises(IdentityError, match=r"damaged.*not what was saved.*Save the identity again"):
        library.load("Anna")


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{]      ", b"PK\3\4" + bytes(99)])
def test_files_of_other_kinds(library: IdentityLibrary, tmp_path: Path, content: bytes) -> None:
    path_of(tmp_path, "x").parent.mkdir(parents=True)
    path_of(tmp_path, "x").write_bytes(content)
    for call in (library.load, library.header):
        with pytest.raises(IdentityError, match=r"x\.safetensors is damaged"):
            call("x")


def test_truncated_anywhere(library: IdentityLibrary, tmp_path: Path) -> None:
    library.save(someone())
    path = path_of(tmp_path, "Anna")
    content = path.read_bytes()
    for end in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:end])
        with pytest.raises(IdentityError, match="damaged"):
            library.load("Anna")


def test_an_adapter_in_the_folder_is_foreign(library: IdentityLibrary, tmp_path: Path) -> None:
    path_of(tmp_path, "x").parent.mkdir(parents=True)
    save_file({"image_proj.proj.weight": np.ones(3, np.float32)}, str(path_of(tmp_path, "x")))
    with pytest.raises(IdentityError, match=r"not a saved identity.*adapters belong"):
        library.header("x")


def test_a_huge_file_is_not_read(library: IdentityLibrary, tmp_path: Path) -> None:
    path_of(tmp_path, "x").parent.mkdir(parents=True)
    with path_of(tmp_path, "x").open("wb") as file:
        file.truncate(saved_identity_file.MAX_BYTES + 1)  # sparse
    with pytest.raises(IdentityError, match="has 512 MiB; saved identities have at most 512"):
        library.load("x")


def test_too_many_photos_are_refused_before_writing(library: IdentityLibrary, tmp_path: Path) -> None:
    many = replace(someone(), photos=someone().photos * 17)
    with pytest.raises(IdentityError, match="would have 34 photos"):
        library.save(many)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.skipif(os.name == "nt", reason="folder permissions are POSIX's")
def test_a_failed_save_leaves_the_old_one(
    library: IdentityLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = library.save(someone())

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(IdentityError, match=r"'Anna' cannot be saved in .*No space left on device"):
        library.save(someone("Anna", "c"), replace=True)
    assert library.load("Anna").digest == before.digest
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["Anna.safetensors"]


def test_the_folder_is_a_file(library: IdentityLibrary, tmp_path: Path) -> None:
    (tmp_path / FOLDER).parent.mkdir()
    (tmp_path / FOLDER).write_text("in the way")
    with pytest.raises(IdentityError, match="cannot be saved in"):
        library.save(someone())


def test_the_state_changes_with_the_file(library: IdentityLibrary) -> None:
    library.save(someone("Anna", "a"))
    before = library.state("Anna")
    assert library.state("anna") == before
    library.save(someone("Anna", "ab"), replace=True)
    assert library.state("Anna") != before


@pytest.mark.skipif(os.name == "nt", reason="file permissions are POSIX's")
def test_the_file_is_for_its_owner(library: IdentityLibrary, tmp_path: Path) -> None:
    library.save(someone())
    assert path_of(tmp_path, "Anna").stat().st_mode & 0o777 == 0o600


def test_no_photo_and_no_path_in_the_file(library: IdentityLibrary, tmp_path: Path) -> None:
    library.save(someone())
    assert not re.search(re.escape(str(tmp_path)).encode(), path_of(tmp_path, "Anna").read_bytes())
