"""Requests with anything in them: an answer or a refusal in words, each as JSON in UTF-8, never an exception."""

from __future__ import annotations

import base64
import copy
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("fastapi", reason="the WebUIs bring it")
pytest.importorskip("httpx", reason="FastAPI's test client needs it")
from fastapi import FastAPI
from fastapi.testclient import TestClient

from dp_adapter.errors import SettingsError
from dp_adapter.modes import TABLE, add_words
from dp_adapter.session import Session
from dp_adapter.settings import Settings
from dp_adapter.webui.api import routes
from dp_adapter.webui.job.stop import DPAdapterStop
from dp_adapter.webui.panel import widget_values
from dp_adapter.webui.panel.messages import explain
from tests.hostile.tries import hostile

MOST_SAID = 4500  # bytes of a refusal
HALF = "\ud800"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES: list[Any] = [
    None, True, False, 0, -1, 3, 0.5, 1e308, -1e400, 1e400, float("nan"), 10**400, 2**63, -(2**64),
    "", " ", "x", "1" * 30_000 + "x", "9" * 5000, "a" * 2**20, "a/b" * 3000, "/" + "x" * 5000 + "/y", HALF,
    f"k{HALF}" * 50, "\0", "\u202eevil\u2066", "\x1b[31m", "photo:0123456789abcdef", "photo:" + HALF, "identity:x",
    "identity:" + "x" * 70, "latent:" + "y" * 5000, "latent:../..", "data:image/png;base64,AAAA", "custom:" + "z" * 64,
    "0@0," * 900, "1@" + "1" * 4000, ",", "[" * 50_000, "{", "json x", [], {}, [[]], [None], [{}] * 40, [0.1] * 70,
    {HALF: 1}, {"a": {"b": 1}}, {"": 0}, {str(n): 1 for n in range(100)}, nested(800),
]  # fmt: skip
KEYS = [
    "weight", "references", "regions", "kind", "box", "image", "identity", "face", "choice", "like", "sites", "curve",
    "model", "mode", "tracking", "moments", "version", "name", "settings", "width", HALF, "k" * 100_000, "", "a.b[0]",
    "references[0].image", "\u202e", "x\0y", "__proto__",
]  # fmt: skip
Change = tuple[str, int, Any]
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 200), st.sampled_from(VALUES)),
        st.tuples(st.just("add"), st.integers(0, 200), st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES))),
        st.tuples(st.just("drop"), st.integers(0, 200), st.none()),
        st.tuples(st.just("repeat"), st.integers(0, 200), st.integers(2, 50)),
    ),
    min_size=1,
    max_size=3,
)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a tree, as what holds it and where."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from places(value)


def changed(tree: Any, changes: list[Change]) -> Any:
    """A copy of a request with some of its values exchanged, added, dropped or repeated."""
    tree = {"": copy.deepcopy(tree)}
    for way, number, what in changes:
        found = list(places(tree))
        holder, key = found[number % len(found)]
        inside = holder[key]
        if way == "put":
            holder[key] = copy.deepcopy(what)
        elif way == "add" and isinstance(inside, dict):
            inside[what[0]] = copy.deepcopy(what[1])
        elif way == "drop" and holder is not tree:
            del holder[key]
        elif way == "repeat" and isinstance(holder[key], list):
            holder[key] = holder[key] * what
    return tree[""]


def request(photo: str) -> dict[str, Any]:
    """A request with something in every kind of field."""
    settings = Settings.from_dict(
        {
            "references": [{"image": photo, "face": {"choice": "index"}}, {"image": photo, "identity": 1}],
            "regions": [{"kind": "box", "box": {"x1": 0.5}}, {"kind": "mask", "mask": photo, "identity": 1}],
            "levels": {"sites": {"3": 0.5}},
            "curve": "0@0.1, 1@1",
            "span": {"start": 0.1},
        }
    )
    return settings.to_dict()


@pytest.fixture(scope="module")
def photo(portrait: Path) -> str:
    """A small portrait as base64."""
    file = io.BytesIO()
    small = Image.open(portrait)
    small.thumbnail((128, 128))
    small.convert("RGB").save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("models")
    (root / "dp_adapter").mkdir()
    session, app = Session([root], paths_allowed=False), FastAPI()
    routes.add_to(app, routes.AnswerSources(lambda: session, lambda: "sd15", threading.Lock(), "a1111"))
    with TestClient(app) as made:
        yield made


def bodies(photo: str) -> list[tuple[str, str, Any]]:
    """Method, path and body of every route that takes one."""
    settings = request(photo)
    return [
        ("POST", "/faces", {"image": photo, "face": {"choice": "left"}, "thumbnails": True}),
        ("POST", "/regions", {"settings": settings, "width": 512, "height": 256, "init": photo, "masks": True}),
        ("POST", "/embed", {"settings": settings}),
        ("POST", "/identities", {"settings": settings, "name": "Anna", "replace": True}),
        ("PATCH", "/identities/Anna", {"name": "Anna"}),
    ]


def require_words(status: int, content: bytes) -> None:
    """An answer, or a refusal that says in few words what is wrong; both can be written by everybody who reads them."""
    assert status == 200 or 400 <= status < 500, content[:500]
    said = json.loads(content.decode())
    json.dumps(said, ensure_ascii=False).encode()
    if status != 200:
        assert isinstance(said["detail"], str) and said["detail"].replace("\n", "").isprintable()
        assert len(content) < MOST_SAID


@given(number=st.integers(0, 4), changes=CHANGES)
@hostile
def test_a_body_with_anything_in_it(client: TestClient, photo: str, number: int, changes: list[Change]) -> None:
    method, path, body = bodies(photo)[number]
    text = json.dumps(changed(body, changes))
    answer = client.request(method, routes.PREFIX + path, content=text, headers={"content-type": "application/json"})
    require_words(answer.status_code, answer.content)


RAW = [
    b"", b"\xff", b"\xff\xfe{\0}\0", b"null", b"[]", b"0", b'"x"', b'{"settings":', b"[" * 100_000, b'{"a":' * 20_000,
    b'{"settings":{"weight":' + b"9" * 5000 + b"}}", b'{"settings":{"weight":1,"weight":2}}',
    b'{"settings":{},"settings":1}', b'{"settings":{"weight":NaN},"width":Infinity}', b'{"settings":{"\\ud800":1}}',
    b'{"\\udfff":1}', b"{}" * 9,
]  # fmt: skip


@given(path=st.sampled_from(["/faces", "/regions", "/embed", "/identities"]), raw=st.sampled_from(RAW) | st.binary())
@hostile
def test_a_body_that_is_anything(client: TestClient, path: str, raw: bytes) -> None:
    answer = client.post(routes.PREFIX + path, content=raw, headers={"content-type": "application/json"})
    require_words(answer.status_code, answer.content)


@pytest.mark.parametrize("values", ["0,", "[],", '{"a":1},', "[" * 9])
def test_a_body_of_small_values_is_not_read(client: TestClient, values: str) -> None:
    raw = '{"settings":{"references":[' + values * 200_000
    answer = client.post(f"{routes.PREFIX}/embed", content=raw, headers={"content-type": "application/json"})
    require_words(answer.status_code, answer.content)
    assert answer.status_code == 413


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("name", ["%ff%fe", "n" * 20_000, "%ED%A0%80", "%00", "%E2%80%AEx", "..%2F.."])
def test_a_name_that_is_anything(client: TestClient, method: str, name: str) -> None:
    answer = client.request(method, f"{routes.PREFIX}/identities/{name}")
    require_words(answer.status_code, answer.content)
    assert answer.status_code == 404


@given(changes=CHANGES, where=st.sampled_from(["object", "text", "panel"]))
@hostile
def test_script_args_with_anything_in_them(changes: list[Change], where: str) -> None:
    settings = request("photo:0123456789abcdef")
    if where == "panel":
        args = changed(widget_values.args_of(Settings.from_dict(settings)), changes)
    else:
        body = changed(settings, changes)
        args = [json.dumps(body) if where == "text" else body]
    try:
        made = widget_values.settings_of(args if isinstance(args, list) else [args])
    except SettingsError as error:
        for words in (str(error), explain(error)):
            stop = DPAdapterStop(words)
            require_words(stop.status_code, json.dumps({"detail": stop.detail}, ensure_ascii=False).encode())
    else:
        json.dumps(made.to_dict(), ensure_ascii=False).encode()


def test_names_of_files_that_are_no_utf_8_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "dp_adapter"
    folder.mkdir()
    try:
        (folder / "caf\udce9.safetensors").write_bytes(b"nothing")
    except (OSError, UnicodeError):
        pytest.skip("this system has no such names")
    session, app = Session([tmp_path], paths_allowed=False), FastAPI()
    routes.add_to(app, routes.AnswerSources(lambda: session, lambda: "sd15", threading.Lock(), "a1111"))
    (listed,) = TestClient(app).get(f"{routes.PREFIX}/models").json()["models"]
    assert listed["name"] == "caf\\udce9.safetensors"
    assert not listed["fits"]


PIECES = [
    " ",
    "\n",
    "<",
    "(",
    ":",
    ": 1",
    "man ",
    "#",
    "[",
    "AND ",
    " BREAK",
    "a",
    "full body, ",
    "_",
    "\ud800",
    "x:0.5 ",
]


@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from([1, 2, 500])), max_size=4))
@hostile
def test_words_into_a_prompt_of_anything(pieces: list[tuple[str, int]]) -> None:
    prompt = "".join(piece * times for piece, times in pieces)
    once = add_words(prompt, prompt, TABLE["full_body"].words)
    assert all(len(text) <= len(prompt) + 200 * (1 + prompt.count("AND")) for text in once)
    assert "full body" in once[0] and "cropped" in once[1]
