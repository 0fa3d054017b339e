"""Downloads of whatever a server says and whatever stands in the file's place: the file, or a sentence."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from dp_adapter import catalog, download
from dp_adapter.errors import CatalogError
from tests.hostile.tries import hostile
from tests.https_server import Server, left, serving

BODY = bytes(range(256)) * 4
LENGTHS = ["abc", "", "-1", "0", "1024", "1025", "9" * 5000, "1e3", "\u00b2", "1024, 1024"]
RANGES = ["", "bytes", "bytes 0-1023/1024", "bytes 512-1023/1024", "bytes 512-1023/*", "bytes 512-9/" + "9" * 5000]
PLACES = [
    "https://[::1",
    "https://",
    "https://a b/",
    "//",
    "",
    "http://127.0.0.1/good",
    "file:///etc/hosts",
    "https://:0",
]
HEADERS = some.fixed_dictionaries(
    {},
    optional={
        "Content-Length": some.sampled_from(LENGTHS),
        "Content-Range": some.sampled_from(RANGES),
        "Location": some.sampled_from(PLACES),
        "Transfer-Encoding": some.sampled_from(["chunked", "gzip", ""]),
    },
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@hostile
@given(
    status=some.sampled_from([200, 206, 204, 301, 302, 307, 308, 304, 400, 416, 500, 999]),
    headers=HEADERS,
    body=some.sampled_from([b"", BODY, BODY[:512], BODY[512:], BODY + b"!", b"ZZ\r\n" + BODY]),
    part=some.sampled_from([None, b"", BODY[:512], BODY, BODY + b"!"]),
)
def test_any_answer(server: Server, status: int, headers: dict[str, str], body: bytes, part: bytes | None) -> None:
    server.given = (status, headers, body)
    model = server.model("given", BODY)
    with tempfile.TemporaryDirectory() as folder:
        target = model.path_in(Path(folder))
        target.parent.mkdir(parents=True)
        if part is not None:
            download.part_of(target).write_bytes(part)
        try:
            got = catalog.fetch(model, Path(folder), opener=server.opener())
        except CatalogError as error:
            assert not target.exists() and str(error)
            assert set(left(Path(folder))) <= {download.part_of(target).name}
        else:
            assert got.read_bytes() == BODY and left(Path(folder)) == [target.name]
        server.given = (200, {"Content-Length": "1024"}, BODY)  # whatever was left: the next try brings the file
        for path in left(Path(folder)):
            assert path in (target.name, target.name + ".part")
        if not target.exists():
            try:
                catalog.fetch(model, Path(folder), opener=server.opener())
            except CatalogError as error:
                assert "was deleted" in str(error)  # a part with other bytes
                catalog.fetch(model, Path(folder), opener=server.opener())
        assert target.read_bytes() == BODY


@pytest.mark.parametrize("suffix", ["", ".part", ".lock"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "dangling link"])
def test_anything_in_the_place(server: Server, tmp_path: Path, suffix: str, kind: str) -> None:
    model = server.model("given", BODY)
    server.given = (200, {"Content-Length": "1024"}, BODY)
    target, other = model.path_in(tmp_path), tmp_path / "other"
    target.parent.mkdir(parents=True)
    place = target.with_name(target.name + suffix)
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no named pipes")
        os.mkfifo(place)
    else:
        if kind == "link":
            other.write_bytes(b"mine")
        try:
            place.symlink_to(other)
        except OSError:
            pytest.skip("this user may make no links")
    replaced = suffix == "" and "link" in kind  # by the file; what it leads to stays
    with nullcontext() if replaced else pytest.raises(CatalogError, match="nothing can be downloaded"):
        download.download(model.url, target, size=1024, sha256=model.sha256 or "", page="-", opener=server.opener())
    assert other.read_bytes() == b"mine" if kind == "link" else not other.exists()
    shutil.rmtree(place) if kind == "folder" else place.unlink(missing_ok=True)
    assert catalog.fetch(model, tmp_path, opener=server.opener()).read_bytes() == BODY
