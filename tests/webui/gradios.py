"""The environments with the WebUIs' two gradios, made by ``make test``; torch and the like are lent by this one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = {3: "3.41.2", 4: "4.40.0"}


@dataclass(frozen=True)
class Gradio:
    """One environment."""

    major: int
    python: Path

    def json(self, module: str, *args: str) -> Any:
        """What a module of the tests prints."""
        done = subprocess.run([self.python, "-m", module, *args], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    @contextmanager
    def served(self, models: Path, log: Path) -> Generator[str]:
        """The fake host's page; its address."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [self.python, "-m", "tests.webui.serve", str(port), str(models), "sd15"]
        with log.open("wb") as out, subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out) as server:
            try:
                yield _answering(f"http://127.0.0.1:{port}", server, log)
            finally:
                server.terminate()


def environment(major: int) -> Gradio:
    """Skips the test where the environment is not there."""
    named = os.environ.get(f"DP_GRADIO{major}")
    python = Path(named) if named else ROOT / f".venv-gradio{major}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs gradio {VERSIONS[major]} in {python}; `make test` makes it, or set DP_GRADIO{major}")
    return Gradio(major, python)


def _answering(address: str, server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(address, timeout=5):
                return address
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"The page did not start:\n{log.read_text()}")
