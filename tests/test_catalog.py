"""The catalogue, and ``models`` on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dp_adapter import catalog, download
from dp_adapter.cli import models as cli
from dp_adapter.errors import CatalogError
from tests.https_server import Server, left, part_for, serving

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def always(value: object) -> Callable[[object], object]:
    return lambda _asked: value


# ---------------------------------------------------------------- the rows


def test_every_row_is_complete_and_safe() -> None:
    models = catalog.load()  # ModelFile refuses unsafe rows; what it cannot know is asserted here
    assert len(models) >= 40
    assert len({model.id for model in models}) == len(models)
    assert len({model.path_in(Path()) for model in models}) == len(models)
    for model in models:
        if model.sha256 and not model.shipped:
            pinned = r"/resolve/[0-9a-f]{40}/|//github.com/[\w./-]+/releases/download/v[\d.]+/"
            pinned += r"|//raw\.githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{40}/"
            assert re.search(pinned, model.url), f"{model.id} is not pinned to a commit or a release"
            assert re.match(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} \S+", model.source), model.id
        assert ("research" in model.note) or not re.search("FaceID|InsightFace|InstantID", model.title), model.id


def test_shipped_files_are_in_the_repository_and_right() -> None:
    shipped = [model for model in catalog.load() if model.shipped]
    assert [model.id for model in shipped] == ["yunet", "sface", "selfie-multiclass"]
    for model in shipped:
        catalog.verify(model, model.path_in(REPOSITORY / "models"))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("filename", "../x.bin", "safe"),
        ("filename", "C:x.bin", "safe"),
        ("filename", "a\\b.bin", "safe"),
        ("filename", "x.bin.", "safe"),
        ("filename", "", "safe"),
        ("folder", "/etc", "safe"),
        ("folder", "a/../../b", "safe"),
        ("folder", "a//b", "safe"),
        ("url", "http://example.org/x", "https"),
        ("page", "file:///x", "https"),
        ("size", 0, "positive"),
        ("size", None, "both"),
        ("sha256", "A" * 64, "hex"),
        ("sha256", "ab", "hex"),
        ("source", "", "source"),
        ("licence", "", "licence"),
        ("kind", "virus", "kind"),
        ("base", "sd9", "base"),
    ],
)
def test_bad_rows_are_refused(field: str, value: object, words: str) -> None:
    row = dataclasses.asdict(catalog.find("faceid_sd15")) | {field: value}
    with pytest.raises(CatalogError, match=words):
        catalog.parse(json.dumps({"version": 1, "models": [row]}))


def test_unknown_fields_versions_and_repeated_ids_are_refused() -> None:
    row = dataclasses.asdict(catalog.find("faceid_sd15"))
    assert catalog.parse(json.dumps({"version": 1, "models": [row]}))[0] == catalog.find("faceid_sd15")
    for document, words in (
        ({"version": 2, "models": [row]}, "version 2"),
        ({"version": 1, "models": [row | {"md5": ""}]}, "md5"),
        ({"version": 1, "models": [{k: v for k, v in row.items() if k != "note"}]}, "note"),
        ({"version": 1, "models": [row, row]}, "twice: faceid_sd15"),
    ):
        with pytest.raises(CatalogError, match=words):
            catalog.parse(json.dumps(document))


def test_find_by_id_and_name_and_the_nearest() -> None:
    assert catalog.find("FaceID_SD15").id == "faceid_sd15"
    assert catalog.find("ip-adapter-faceid_sd15.bin").id == "faceid_sd15"
    with pytest.raises(CatalogError, match="faceid-plusv2_sd15"):
        catalog.find("faceid-plus-v2_sd15")
    with pytest.raises(CatalogError, match=r"several models.*antelopev2-genderage, buffalo_l-genderage"):
        catalog.find("genderage.onnx")
    with pytest.raises(CatalogError, match="models list"):
        catalog.find("zzzzzzzz")


def test_a_pack_by_its_name() -> None:
    assert [model.filename for model in catalog.find_all("antelopev2")] == [
        "scrfd_10g_bnkps.onnx", "glintr100.onnx", "1k3d68.onnx", "2d106det.onnx", "genderage.onnx",
    ]  # fmt: skip
    assert catalog.find_all("faceid_sd15") == (catalog.find("faceid_sd15"),)
    with pytest.raises(CatalogError, match=r"models list|Nearest"):
        catalog.find_all("facexlib")


def test_a_missing_file_says_all_there_is_to_say(tmp_path: Path) -> None:
    known, by_hand = (
        str(catalog.missing_error(catalog.find(name), [tmp_path])) for name in ("clip-vit-l", "transface-s")
    )
    assert "OpenAI CLIP ViT-L-14 is needed and was not found. Get it with 'dp-adapter models get clip-vit-l'" in known
    assert f"or put clip-vit-large-patch14.safetensors into {tmp_path / 'clip_vision'}. Its licence: MIT" in known
    assert "Download it ('dp-adapter models get transface-s' says where), or put ms1mv2" in by_hand
    with pytest.raises(CatalogError, match=r"Download it yourself from https://www\.modelscope\.cn/.*TransFace_S\.pt"):
        catalog.fetch(catalog.find("transface-s"), tmp_path)


def test_locate_prefers_its_folder_then_the_root_then_one_level(tmp_path: Path) -> None:
    model = catalog.find("yunet")
    assert catalog.locate(model, [tmp_path / "absent", tmp_path]) is None
    places = [tmp_path / "any" / model.filename, tmp_path / model.filename]
    clip = catalog.find("clip-vit-h")
    places += [tmp_path / clip.filename, clip.path_in(tmp_path)]
    for place in places:
        place.parent.mkdir(exist_ok=True)
        place.touch()
        wanted = clip if place.name == clip.filename else model
        assert catalog.locate(wanted, [tmp_path / "absent", tmp_path]) == place
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / catalog.find("sface").filename).touch()
    assert catalog.locate(catalog.find("sface"), [tmp_path]) is None


def test_verify_and_identify(tmp_path: Path) -> None:
    model = catalog.find("yunet")
    copy = tmp_path / "renamed.onnx"
    shutil.copy(model.path_in(REPOSITORY / "models"), copy)
    seen: list[tuple[int, int]] = []
    catalog.verify(model, copy, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (model.size, model.size)
    assert catalog.identify(copy) == model
    data = bytearray(copy.read_bytes())
    data[1000] ^= 1
    copy.write_bytes(data)
    assert catalog.identify(copy) is None
    with pytest.raises(CatalogError, match="SHA-256"):
        catalog.verify(model, copy)
    copy.write_bytes(data[:-1])
    with pytest.raises(CatalogError, match="232,588 bytes"):
        catalog.verify(model, copy)
    with pytest.raises(CatalogError, match="not there"):
        catalog.verify(model, tmp_path / "none")
    with pytest.raises(CatalogError, match="cannot be verified"):
        catalog.verify(catalog.find("pulid_v1"), copy)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv(cli.ROOT_VARIABLE, str(tmp_path))

    def command(*words: str) -> int:
        parser = argparse.ArgumentParser()
        cli.add_parser(parser.add_subparsers())
        args = parser.parse_args(["models", *words])
        assert args.run is cli.run
        return args.run(args)

    return command


def rows(output: str) -> dict[str, str]:
    return {line.split()[0]: line for line in output.splitlines()[1:] if "  " in line}


def test_list_shows_what_is_here(
    models: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part_for(catalog.find("faceid_sd15"), tmp_path, b"x" * 967_406)
    (tmp_path / catalog.find("sface").filename).write_bytes(b"short")
    shutil.copy(catalog.find("yunet").path_in(REPOSITORY / "models"), tmp_path)
    assert models("list", "--base", "sd15") == 0
    shown = rows(capsys.readouterr().out)
    assert "sd15" in shown["faceid_sd15"] and "96.7 MB" in shown["faceid_sd15"] and "research" in shown["faceid_sd15"]
    for name, here in {
        "faceid_sd15": "partial 1 %",
        "sface": "wrong size",
        "yunet": "present",
        "ip-adapter_sd15": "missing",
        "faceid-portrait_sd15": "missing, by hand",
    }.items():
        assert f"  {here}  " in shown[name], name
    assert "faceid_sdxl" not in shown
    assert models("list", "--kind", "lora") == 0
    assert {name for name in rows(capsys.readouterr().out) if not re.search("lora|resadapter", name)} == set()


def test_get_asks_and_downloads(
    server: Server,
    models: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(catalog, "find", always(server.model("good")))
    opener = server.opener()
    monkeypatch.setattr(download, "https_opener", lambda: opener)
    with pytest.raises(CatalogError, match="--yes"):
        models("get", "x")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", always("n"))
    assert models("get", "x") == 1
    assert server.log == []
    assert models("get", "x", "--yes", "--to", str(tmp_path / "elsewhere")) == 0
    assert left(tmp_path / "elsewhere") == ["ip-adapter_sd15.safetensors"]
    monkeypatch.setattr("builtins.input", always("y"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert models("get", "x") == 0
    captured = capsys.readouterr()
    assert "Apache-2.0" in captured.out and "3.1 MB" in captured.out and server.address in captured.out
    assert re.search(r"100 % +[\d.]+ MB/s\n", captured.err)
    asked = len(server.log)
    monkeypatch.setattr("builtins.input", always("n"))
    assert models("get", "x") == 0, "a file that is here needs no question"
    assert len(server.log) == asked


def test_verify_on_the_command_line(
    models: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yunet = tmp_path / catalog.find("yunet").filename
    shutil.copy(REPOSITORY / "models" / yunet.name, yunet)
    assert models("verify") == 0
    assert capsys.readouterr().out == f"ok   {yunet} is yunet\n"
    renamed = yunet.rename(tmp_path / "face.onnx")
    assert models("verify", str(renamed)) == 0
    assert models("verify", "yunet") == 1
    renamed.write_bytes(b"damaged")
    assert models("verify", str(renamed)) == 1
    output = capsys.readouterr().out
    assert "face.onnx is yunet" in output and "not there" in output and "or is damaged" in output


def test_where_and_the_default_folder(
    models: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models("where") == 0
    output = capsys.readouterr().out
    assert output.startswith(f"{tmp_path}\n") and "clip_vision" in output
    monkeypatch.delenv(cli.ROOT_VARIABLE)
    assert cli.models_root() == REPOSITORY / "models"
    assert cli.models_root(tmp_path) == tmp_path
