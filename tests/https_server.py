"""A real HTTPS server on this machine that behaves well or badly, by path."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import shutil
import ssl
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Generator
from pathlib import Path

import pytest

from dp_adapter import catalog, download
from dp_adapter.catalog import ModelFile

BODY = bytes(range(256)) * 12_000  # 3 MB: several reads
HALF = len(BODY) // 2


class Handler(http.server.BaseHTTPRequestHandler):
    """Each path is one behaviour; ``server.log`` keeps (path, Range header)."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride] - as the standard library's handlers do

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.log.append((self.path, wanted))
        getattr(self, "serve_" + self.path.strip("/").replace("-", "_"))(int(wanted[6:-1]) if wanted else 0)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def serve_good(self, start: int) -> None:
        span = {"Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"} if start else {}
        self.reply(206 if start else 200, BODY[start:], Content_Length=str(len(BODY) - start), **span)

    def serve_norange(self, start: int) -> None:
        self.reply(200, BODY, Content_Length=str(len(BODY)))

    def serve_cut(self, start: int) -> None:  # the whole length is announced, half of it comes
        self.reply(200, BODY[:HALF], Content_Length=str(len(BODY)))
        self.close_connection = True

    def serve_wrong(self, start: int) -> None:
        self.reply(200, b"x" * len(BODY), Content_Length=str(len(BODY)))

    def serve_long(self, start: int) -> None:  # no length announced
        self.reply(200, BODY)
        for _ in range(64):
            self.wfile.write(b"more" * 262_144)
            self.server.surplus += 1

    def serve_announced_long(self, start: int) -> None:
        self.reply(200, b"", Content_Length=str(len(BODY) + 4))

    def serve_shifted(self, start: int) -> None:
        self.reply(206, BODY[start + 1 :], Content_Range=f"bytes {start + 1}-{len(BODY) - 1}/{len(BODY)}")

    def serve_unsatisfiable(self, start: int) -> None:
        self.reply(416, b"")

    def serve_missing(self, start: int) -> None:
        self.reply(404, b"")

    def serve_moved(self, start: int) -> None:
        self.reply(302, b"", Location=self.server.address + "/good")

    def serve_downgraded(self, start: int) -> None:
        self.reply(302, b"", Location=self.server.address.replace("https:", "http:") + "/good")

    def serve_slow(self, start: int) -> None:
        self.server.asked.set()
        self.server.go_on.wait(20)
        self.serve_good(start)

    def serve_given(self, start: int) -> None:  # whatever the test says, and then the end
        status, headers, body = self.server.given
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.certificate = certificate
        self.address = f"https://127.0.0.1:{self.server_port}"
        self.log: list[tuple[str, str | None]] = []
        self.surplus = 0  # MiB sent beyond the end
        self.given: tuple[int, dict[str, str], bytes] = (200, {}, b"")
        self.asked, self.go_on = threading.Event(), threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the tests."""

    def opener(self) -> urllib.request.OpenerDirector:
        return download.https_opener(ssl.create_default_context(cafile=str(self.certificate)))

    def model(self, path: str, body: bytes = BODY) -> ModelFile:
        return dataclasses.replace(
            catalog.find("ip-adapter_sd15"),
            url=f"{self.address}/{path}",
            size=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
        )


@functools.cache
def certificate() -> tuple[tempfile.TemporaryDirectory[str], Path, Path]:
    """A throwaway certificate and its key, and the folder that goes with the process."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("the openssl command, which makes the test server's certificate, is not installed")
    folder = tempfile.TemporaryDirectory()
    names = Path(folder.name) / "certificate.pem", Path(folder.name) / "key.pem"
    made = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(names[0]), "-keyout", str(names[1])]
    subprocess.run([*made.split(), *subject, *files], check=True, capture_output=True)
    return folder, *names


@contextlib.contextmanager
def serving() -> Generator[Server, None, None]:
    """A running server, past any proxy."""
    with pytest.MonkeyPatch.context() as patch, Server(*certificate()[1:]) as running:
        patch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.go_on.set()
        running.shutdown()


def part_for(model: ModelFile, root: Path, content: bytes) -> Path:
    part = download.part_of(model.path_in(root))
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    return part


def left(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())
