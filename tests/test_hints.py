"""What a hint tells a user to type, and how it names places."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dp_adapter import catalog, hints
from dp_adapter.errors import MissingDependencyError, WeightsError
from tests.webui import fake_webui


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A WebUI's folder with its Python and this extension in it, whose user reads the hints."""
    root = tmp_path / "some webui"
    with fake_webui.installed(root / "models"):
        from dp_adapter.webui.host import webui_hints

        monkeypatch.setattr(sys, "executable", str(root / "venv" / "bin" / "python"))
        monkeypatch.setattr(webui_hints, "_ROOT", root / "extensions" / "dp-adapter")
        webui_hints.use_webui_hints()
        yield root


def test_a_command_line_has_its_own_commands() -> None:
    assert hints.command("models get x") == "'dp-adapter models get x'"
    assert "Install it with: pip install onnxruntime (or " in str(MissingDependencyError("onnxruntime", "It", "onnx"))
    assert hints.hide_folders("/srv/models/x is damaged") == hints.spell_out("/srv/models/x is damaged")


def test_a_webui_has_its_own_python(webui: Path) -> None:
    typed = "venv/bin/python extensions/dp-adapter/dp_adapter models get x --models-dir models"
    assert hints.command("models get x") == f"'{typed}' in the WebUI's folder"
    assert "personalise' in" in hints.command("personalise")
    missing = str(MissingDependencyError("onnxruntime", "It", "onnx"))
    assert "with: 'venv/bin/python -m pip install onnxruntime' in the WebUI's folder, and start the WebUI" in missing
    full = hints.spell_out(str(catalog.missing_error(catalog.load()[0], [webui / "models"])))
    places = (webui / "venv" / "bin" / "python", webui / "extensions" / "dp-adapter" / "dp_adapter", webui / "models")
    python, program, models = (f'"{place}"' for place in places)
    assert f"'{python} {program} models get " in full and f"--models-dir {models}'" in full


def test_a_python_from_elsewhere_is_named_by_the_console_alone(webui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dp_adapter.webui.host import webui_hints

    monkeypatch.setattr(sys, "executable", "/opt/conda/envs/webui/bin/python3.10")
    webui_hints.use_webui_hints()
    words = str(MissingDependencyError("onnxruntime", "It", "onnx"))
    assert "'python -m pip install onnxruntime'" in words and "/opt" not in words and "console" in words
    assert "'/opt/conda/envs/webui/bin/python3.10 -m pip install onnxruntime'" in hints.spell_out(words)


def test_no_answer_holds_a_place_on_the_server(webui: Path) -> None:
    error = WeightsError(f"{webui / 'models' / 'x y.bin'} is damaged ({webui.parent / 'other.bin'})", f"See {webui}.")
    assert str(error) == "models/x y.bin is damaged (…/other.bin). See the WebUI's folder."
    outside = WeightsError("/usr/lib/x.bin: a/b, 1/2, /docs, https://x.org/a/b and /sdapi/v1/txt2img", "Go on.")
    assert str(outside) == "…/x.bin: a/b, 1/2, /docs, https://x.org/a/b and /sdapi/v1/txt2img. Go on."
    assert hints.hide_folders(rf"C:\models\x.bin and {Path.home() / 'a' / 'b'}") == "…/x.bin and ~/a/b"


def test_the_command_of_a_hint_runs_where_the_package_is_not_installed(tmp_path: Path) -> None:
    """By the package's folder, with nothing of it on the path, as a WebUI's Python has it."""
    package = Path(hints.__file__).parent
    isolated = [sys.executable, "-S", str(package), "--version"]  # no site-packages, so no installed copy either
    run = subprocess.run(isolated, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
