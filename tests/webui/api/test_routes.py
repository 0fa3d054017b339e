"""The routes over HTTP, in front of a real session, and the page that documents them."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the WebUIs bring it")
pytest.importorskip("httpx", reason="FastAPI's test client needs it")
from fastapi import FastAPI
from fastapi.testclient import TestClient

from dp_adapter.session import Session
from dp_adapter.settings import Settings, json_schema
from dp_adapter.webui.api import answers, refusals, routes
from tests.webui import fake_webui

PAGE = Path(__file__).parents[3] / "docs" / "api.md"
V1 = routes.PREFIX


class CountingLock:
    """The host's lock, and how often it was taken."""

    def __init__(self) -> None:
        self.taken = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@dataclass
class Server:
    """The routes with a session of their own."""

    session: Session
    lock: CountingLock
    client: TestClient

    def get(self, path: str) -> Any:
        return self.client.get(V1 + path)

    def post(self, path: str, body: Any) -> Any:
        return self.client.post(V1 + path, json=body)


def served(session: Session, lock: CountingLock) -> routes.AnswerSources:
    return routes.AnswerSources(lambda: session, lambda: "sd15", lock, "a1111")


@pytest.fixture
def server(models: Path) -> Iterator[Server]:
    session, lock, app = Session([models], paths_allowed=False), CountingLock(), FastAPI()
    routes.add_to(app, served(session, lock))
    with TestClient(app) as client:
        yield Server(session, lock, client)


@pytest.fixture(scope="module")
def photo(portrait: Path) -> str:
    """A portrait as base64."""
    return base64.b64encode(portrait.read_bytes()).decode()


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_faces_and_the_one_that_would_be_taken(server: Server, photo: str) -> None:
    answer = server.post("/faces", {"image": photo}).json()
    assert answer["chosen"] == 0
    assert "thumbnail" not in answer["faces"][0]
    again = server.post("/faces", {"image": answer["photo"], "thumbnails": True})
    assert picture(again.json()["faces"][0]["thumbnail"]).size == (112, 112)
    assert server.lock.taken == 2


def test_a_crowd_is_an_answer(server: Server, portrait: Path) -> None:
    with Image.open(portrait) as one:
        small = one.convert("RGB").resize((100, 100))
    crowd = Image.new("RGB", (900, 900))
    for number in range(81):
        crowd.paste(small, (number % 9 * 100, number // 9 * 100))
    answer = server.post("/faces", {"image": base64_of(crowd), "thumbnails": True})
    assert answer.status_code == 200, answer.json()
    assert len(answer.json()["faces"]) > 64 and answer.json()["chosen"] is not None
    last = {"image": answer.json()["photo"], "face": {"choice": "index", "index": len(answer.json()["faces"]) - 1}}
    assert server.post("/faces", last).json()["chosen"] == last["face"]["index"]


def test_no_face_is_an_answer(server: Server, faceless: Path) -> None:
    answer = server.post("/faces", {"image": base64.b64encode(faceless.read_bytes()).decode()})
    assert answer.status_code == 200
    assert answer.json()["faces"] == []
    assert "chosen" not in answer.json()
    assert answer.json()["reason"]


def base64_of(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_mask_on_a_transparent_layer(server: Server) -> None:
    layer = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (0, 0, 32, 32))
    masks = [base64_of(layer), base64_of(layer.transpose(Image.Transpose.ROTATE_180))]
    drawn = [{"kind": "mask", "mask": mask, "identity": number} for number, mask in enumerate(masks)]
    body = {"settings": {"regions": drawn}, "masks": True}
    first, second = server.post("/regions", body).json()["regions"]
    assert first["coverage"] == second["coverage"] == 0.25
    assert picture(first["mask"]).getbbox() == (0, 0, 256, 256)
    assert picture(second["mask"]).getbbox() == (256, 256, 512, 512)


def test_automatic_regions_say_what_will_happen_and_who_has_none(server: Server, photo: str) -> None:
    photos = [{"image": photo}, {"image": photo, "identity": 1}]
    answer = server.post("/regions", {"settings": {"references": photos}, "masks": True}).json()
    assert answer["notes"] == []
    for one in answer["regions"]:
        assert (one["coverage"], one["known"], one["follows"]) == (0.0, False, True)
        assert "nowhere until then" in one["source"] and picture(one["mask"]).getextrema() == (0, 0)
    box = {"kind": "box", "box": {"x1": 0.5}}
    answer = server.post("/regions", {"settings": {"references": photos, "regions": [box, box]}}).json()
    assert [one["follows"] for one in answer["regions"]] == [False, True]
    assert answer["notes"][0].startswith("Person 2 has no region and acts in the face as soon as")


def test_regions_follow_the_init_picture_and_masks_come_on_request(server: Server, photo: str) -> None:
    body = {"settings": {"references": [{"image": photo}]}, "init": photo, "width": 640, "height": 512}
    (region,) = server.post("/regions", body).json()["regions"]
    assert region["known"]
    assert 0.02 < region["coverage"] < 0.2
    assert "mask" not in region
    (region,) = server.post("/regions", {**body, "masks": True}).json()["regions"]
    assert picture(region["mask"]).size == (640, 512)
    (region,) = server.post("/regions", {**body, "parts": True}).json()["regions"]
    assert "mask" not in region and {"face", "skin", "hair", "eyes", "mouth", "background"} <= set(region["parts"])
    background = picture(region["parts"]["background"])
    assert background.size == (640, 512) and min(background.crop((0, 0, 4, 4)).tobytes()) > 200
    settings = {"references": [{"image": photo}], "mode": "expression", "expression": "sad"}
    sad = {**body, "settings": settings}
    assert server.post("/regions", sad).json()["regions"][0]["coverage"] < region["coverage"], "its parts count less"
    box = {"settings": {"regions": [{"kind": "full"}]}, "masks": True, "parts": True}
    assert "parts" not in server.post("/regions", box).json()["regions"][0]
    assert picture(server.post("/regions", box).json()["regions"][0]["mask"]).getextrema() == (255, 255)


def test_vectors_have_unit_length_and_tell_people_apart(server: Server, photo: str) -> None:
    answer = server.post("/embed", {"settings": {"references": [{"image": photo}, {"image": photo, "weight": 0.5}]}})
    (person,) = answer.json()["persons"]
    assert len(person["vector"]) == answer.json()["dimensions"] == 128
    assert sum(a * b for a, b in zip(person["vector"], person["photos"][0]["vector"], strict=True)) == pytest.approx(1)
    assert [one["weight"] for one in person["photos"]] == [1.0, 0.5]


def test_an_identity_from_saving_to_deleting(server: Server, photo: str) -> None:
    body = {"name": "Anna", "settings": {"references": [{"image": photo}]}}
    made = server.post("/identities", body).json()
    hashed = server.post("/faces", {"image": photo}).json()["photo"].removeprefix("photo:")
    assert made["photos"] == [hashed]
    assert picture(made["thumbnail"]).format == "PNG"
    assert "already" in server.post("/identities", body).json()["detail"]
    assert server.post("/identities", {**body, "replace": True}).status_code == 200
    (listed,) = server.get("/identities").json()["identities"]
    assert "thumbnail" not in listed
    renamed = server.client.patch(f"{V1}/identities/Anna", json={"name": "Bea"})
    assert renamed.json()["name"] == "Bea"
    used = server.post("/embed", {"settings": {"references": [{"image": "identity:Bea"}]}})
    assert used.json()["persons"][0]["photos"][0]["photo"] == hashed
    assert server.client.delete(f"{V1}/identities/Bea").json() == {"deleted": "Bea"}
    assert server.get("/identities").json() == {"identities": []}


@pytest.mark.parametrize("method", ["get", "patch", "delete"])
@pytest.mark.parametrize("name", ["Nobody", "..%2F..%2Fconfig", "%00"])
def test_an_identity_that_is_not_there(server: Server, method: str, name: str) -> None:
    body: dict[str, Any] = {"json": {"name": "New"}} if method == "patch" else {}
    answer = getattr(server.client, method)(f"{V1}/identities/{name}", **body)
    assert answer.status_code == 404
    assert "detail" in answer.json()


def test_a_damaged_identity_does_not_hide_the_others(server: Server, photo: str, models: Path) -> None:
    server.post("/identities", {"name": "Anna", "settings": {"references": [{"image": photo}]}})
    (models / "dp_adapter" / "identities" / "Broken.safetensors").write_bytes(b"not an identity")
    good, broken = server.get("/identities").json()["identities"]
    assert (good["name"], broken["name"]) == ("Anna", "Broken")
    assert broken["problem"]
    answer = server.get("/identities/Broken")
    assert answer.status_code == 422


def test_models_say_whether_they_fit(server: Server, models: Path) -> None:
    (models / "dp_adapter" / "other.safetensors").write_bytes(b"no weights")
    fitting, other = server.get("/models").json()["models"]
    assert (fitting["fits"], fitting["base"]) == (True, "sd15")
    assert (other["fits"], other["name"]) == (False, "other.safetensors")
    assert other["reason"]


def test_the_schema_is_that_of_the_settings(server: Server) -> None:
    assert server.get("/schema").json() == json.loads(json.dumps(json_schema()))


REFUSED: list[tuple[str, Any, str, str]] = [
    ("/faces", {}, "image", "image: "),
    ("/faces", {"image": "x", "imgae": 1}, "", ""),
    ("/faces", {"image": "/etc/passwd"}, "image", "base64"),
    ("/faces", {"image": "http://127.0.0.1/x.png"}, "image", "never fetched"),
    ("/faces", {"image": "photo:0123456789abcdef"}, "image", "not here any more"),
    ("/faces", {"image": "identity:Anna"}, "image", "has no picture"),
    ("/faces", {"image": "PHOTO", "face": {"choice": "biggest"}}, "face.choice", "one of largest, centre, "),
    ("/regions", {"settings": {"weigth": 1}}, "weigth", "Did you mean 'weight'?"),
    ("/regions", {"settings": {"weight": 9}}, "weight", "Use 2 or less."),
    ("/regions", {"settings": {}, "width": 1}, "width", "64"),
    ("/regions", {"settings": 5}, "settings", ""),
    ("/embed", {"settings": {}}, "references", "there is no photo"),
    ("/embed", {"settings": {"references": [{"image": "FACELESS"}]}}, "references[0]", "face"),
    ("/embed", {"settings": {"references": [{"image": "latent:../../x"}]}}, "references[0].image", "no latent"),
    ("/identities", {"name": "a/b", "settings": {"references": [{"image": "PHOTO"}]}}, "", "cannot be the name"),
    ("/identities", {"name": "Anna", "settings": {}}, "references", "there is no photo"),
]


@pytest.mark.parametrize(("path", "body", "field", "words"), REFUSED)
def test_refusals_name_the_field_in_words(
    server: Server, photo: str, faceless: Path, path: str, body: Any, field: str, words: str
) -> None:
    blank = base64.b64encode(faceless.read_bytes()).decode()
    text = json.dumps(body).replace("PHOTO", photo).replace("FACELESS", blank)
    answer = server.client.post(V1 + path, content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert isinstance(answer.json()["detail"], str)
    assert not field or answer.json()["field"] == field


def test_what_is_no_json_is_told(server: Server) -> None:
    answer = server.client.post(f"{V1}/faces", content=b'{"image":', headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("The body is not JSON")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_that_is_too_long_is_not_read(server: Server, monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    monkeypatch.setattr(refusals, "MOST_BYTES", 2**20)
    body = json.dumps({"image": "A" * 2**21}).encode()
    pieces: Any = (body[i : i + 2**16] for i in range(0, len(body), 2**16)) if chunked else body
    answer = server.client.post(f"{V1}/faces", content=pieces, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert "smaller pictures" in answer.json()["detail"]


def test_the_routes_are_described_in_the_hosts_docs(server: Server) -> None:
    described = server.client.get("/openapi.json").json()
    ours = {path: methods for path, methods in described["paths"].items() if path.startswith(V1)}
    assert {path.removeprefix(V1).split("/")[1] for path in ours} == {
        "version", "schema", "models", "modes", "identities", "faces", "regions", "embed",
    }  # fmt: skip
    for methods in ours.values():
        assert all(one["description"] and one["tags"] == ["DP-Adapter"] for one in methods.values())
    region = described["components"]["schemas"]["RegionAnswer"]["properties"]
    assert all(field["description"] for field in region.values())


def started(models: Path, **flags: Any) -> TestClient:
    """The routes as the host starts them with these command-line flags."""
    values = {"api": False, "nowebui": False, "api_auth": None, **flags}
    app = FastAPI()
    with fake_webui.installed(models) as fake:
        vars(fake["modules.shared"]).update(cmd_opts=SimpleNamespace(**values))
        queue = ModuleType("modules.call_queue")
        vars(queue).update(queue_lock=CountingLock())
        vars(fake["modules"]).update(call_queue=queue)
        routes.add_routes(app)
    return TestClient(app)


def test_without_the_hosts_api_there_are_no_routes(models: Path) -> None:
    assert started(models).get(f"{V1}/schema").status_code == 404
    assert started(models, api=True).get(f"{V1}/schema").status_code == 200
    assert started(models, nowebui=True).get(f"{V1}/schema").status_code == 200


def test_the_hosts_password_guards_every_route(models: Path) -> None:
    client = started(models, api=True, api_auth="ada:secret,bob:ünsafe")
    for route in routes.Routes(SimpleNamespace()).table():  # type: ignore[arg-type]
        path = V1 + route[0].format(name="Anna")
        assert client.request(route[1], path, json={}).status_code == 401
        assert client.request(route[1], path, json={}, auth=("ada", "wrong")).status_code == 401
    assert client.get(f"{V1}/schema", auth=("ada", "secret")).status_code == 200


def documented() -> list[tuple[str, str, Any, Any]]:
    """Method, path, request and answer of every route in the page."""
    sections = re.split(r"^### `(GET|POST|PATCH|DELETE) (\S+)`$", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    found: list[tuple[str, str, Any, Any]] = []
    for method, path, text in zip(*[iter(sections)] * 3, strict=True):
        blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.S)]
        found.append((method, path, blocks[0] if len(blocks) == 2 else None, blocks[-1]))
    return found


def agrees(real: Any, page: Any) -> bool:
    """Whether an answer is as the page shows it: … stands for anything, numbers may differ in their last digits."""
    if page == "…":
        return True
    if isinstance(page, dict):
        shown: dict[str, Any] = {key: value for key, value in page.items() if key != "…"}
        complete = "…" in page or set(real) == set(shown)
        return complete and all(key in real and agrees(real[key], value) for key, value in shown.items())
    if isinstance(page, list):
        shown_items: list[Any] = page[:-1] if page[-1:] == ["…"] else page
        complete = len(shown_items) < len(page) or len(real) == len(shown_items)
        return complete and all(agrees(one, other) for one, other in zip(real, shown_items, strict=False))
    if isinstance(page, float) and isinstance(real, float):
        return real == pytest.approx(page, rel=0.05, abs=0.02)
    return bool(real == page)


def test_every_example_of_the_page_is_what_the_routes_answer(server: Server, photo: str) -> None:
    examples = documented()
    served_routes = {(route[1], V1 + route[0]) for route in routes.Routes(SimpleNamespace()).table()}  # type: ignore[arg-type]
    named = {(method, re.sub(r"/identities/\w+$", "/identities/{name}", path)) for method, path, _, _ in examples}
    assert named == served_routes
    for method, path, body, answer in examples:
        sent = None if body is None else json.loads(json.dumps(body, ensure_ascii=False).replace("…base64…", photo))
        real = server.client.request(method, path, json=sent)
        assert real.status_code == (422 if "detail" in answer else 200), real.text
        assert agrees(real.json(), answer), f"{method} {path} answers {real.text[:2000]}"


def test_the_pages_generation_examples_are_valid_settings() -> None:
    text = PAGE.read_text(encoding="utf-8")
    plain = text.replace("$PHOTO", "AAAA").replace('"image": photo', '"image": "AAAA"')
    starts = [match.end() for match in re.finditer(r'"DP-Adapter":\s*\{"args":\s*\[', plain)]
    assert len(starts) == 2, "one for curl, one for Python"
    for start in starts:
        request, _ = json.JSONDecoder().raw_decode(plain, start)
        settings = Settings.from_dict(request)
        assert [reference.image for reference in settings.references] == ["AAAA"]


def test_the_masks_of_an_answer_have_a_bound(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_MOST_DRAWN", 2 * 256 * 128)
    box = {"kind": "box", "box": {"x1": 0.5}}
    body = {"settings": {"regions": [box, {**box, "identity": 1}]}, "width": 512, "height": 256, "masks": True}
    for region in server.post("/regions", body).json()["regions"]:
        drawn = picture(region["mask"])
        assert drawn.size == (256, 128) and drawn.getbbox() == (0, 0, 128, 128)
