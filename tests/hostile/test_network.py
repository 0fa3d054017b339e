"""Looking at a photo tells nobody: no socket, no look-up of a name, and no file but those that were asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# what Python does is refused by its own hook; what native code does shows in its files and, where strace is, its calls
_WATCHED = """
import sys
def refuse(event, arguments):
    if event.startswith("socket.") and event != "socket.__new__" or event == "urllib.Request":
        raise AssertionError(f"{event} {arguments}")
sys.addaudithook(refuse)
import time
from dp_adapter.cli import main
code = main(["faces", sys.argv[1], "--parts", "--out", sys.argv[2]])
try:
    from insightface.app import FaceAnalysis
except ImportError:
    pass
time.sleep(float(sys.argv[3]))
raise SystemExit(code)
"""


@pytest.fixture
def looked(portrait: Path, tmp_path: Path) -> tuple[str, list[str], list[str]]:
    """What a fresh process that finds a face says, the calls for a network that it makes, and the files it leaves."""
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    named = {name: str(home) for name in ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "TMPDIR", "TEMP", "TMP")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_", "NO_ALBUM"))}
    log, strace = tmp_path / "calls", shutil.which("strace")
    # the events are sent some seconds after the first run of a network
    command = [sys.executable, "-c", _WATCHED, str(portrait), str(out), "3" if strace else "0"]
    if strace:
        command = [strace, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(log), *command]
    done = subprocess.run(
        command, env={**kept, **named}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    calls = log.read_text(errors="replace").splitlines() if log.exists() else []
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file() and path != log]
    return done.stdout, [call for call in calls if "AF_INET" in call], left


def test_a_face_is_found_without_a_word_to_anybody(looked: tuple[str, list[str], list[str]], portrait: Path) -> None:
    said, calls, left = looked
    assert "1 face(s)" in said
    assert calls == []
    assert left == [str(Path("out") / f"{portrait.stem}_faces.png")]


def test_onnxruntime_that_another_extension_loaded_is_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from dp_adapter.identity.encoders.onnx_runtime import import_onnxruntime

    silenced: list[bool] = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: silenced.append(True))
    assert import_onnxruntime() is onnxruntime and silenced
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0", "who has said otherwise is heard"


def test_the_webui_has_it_off_before_any_extension_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse
    import runpy

    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    runpy.run_path(str(ROOT / "preload.py"))["preload"](argparse.ArgumentParser())
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
