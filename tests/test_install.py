"""What the WebUI's start installs, and that it never moves a package of the WebUI."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parents[1]


@pytest.fixture
def install() -> Any:
    spec = importlib.util.spec_from_file_location("dp_install", ROOT / "install.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("found", "installs", "says"),
    [
        ({}, True, False),
        ({"onnxruntime": (1, 22)}, False, False),
        ({"onnxruntime-gpu": (1, 20)}, False, False),
        ({"onnxruntime-directml": (1, 19)}, False, False),
        ({"onnxruntime": (1, 17)}, True, False),
        ({"onnxruntime-gpu": (1, 16)}, False, True),  # never beside or instead of a GPU build
        ({"onnxruntime": (1, 17), "onnxruntime-gpu": (1, 17)}, False, True),
    ],
)
def test_what_is_missing(install: Any, found: dict[str, tuple[int, int]], installs: bool, says: bool) -> None:
    requirement, words = install.missing(found)
    assert bool(requirement) == installs and bool(words) == says


@pytest.mark.parametrize(
    ("protobuf", "asks"),
    [
        ((3, 20, 0), "onnxruntime>=1.19,<1.27"),  # A1111, Forge, reForge; classic has 3.20.3
        ((4, 25, 1), "onnxruntime>=1.19,<1.27"),
        ((4, 25, 9), "onnxruntime>=1.19"),  # neo
        ((6, 33, 0), "onnxruntime>=1.19"),
        (None, "onnxruntime>=1.19"),
    ],
)
def test_the_newest_that_fits_is_asked_for(install: Any, protobuf: tuple[int, ...] | None, asks: str) -> None:
    """pip would fetch 20 MB for each release that does not fit, to read that it does not."""
    assert install.newest({"protobuf": protobuf}.get) == asks


def test_what_onnxruntime_needs_is_in_the_table(install: Any) -> None:
    """Of the one that is installed here; a newer one that wants more than the WebUIs have fails here first."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    here = install.version_of("onnxruntime")
    for line in importlib.metadata.requires("onnxruntime") or []:
        found = re.match(r"([\w-]+) ?>=([\d.]+)$", line)
        if found is None or found[1] not in install.PINNED:
            continue
        least = tuple(int(number) for number in found[2].split("."))
        known = [least for first, package, least in install.NEEDS if package == found[1] and first <= here]
        ours = re.search(rf'"{found[1]}>=([\d.]+)"', lines)
        if ours is not None:
            known.append(tuple(int(number) for number in ours[1].split(".")))
        assert known and max(known) >= least, line


@pytest.mark.parametrize(
    ("text", "numbers"), [("3.20.0", (3, 20, 0)), ("1.19", (1, 19, 0)), ("2.1.2+cu121", (2, 1, 2)), ("?", (0, 0, 0))]
)
def test_versions_are_compared_as_numbers(
    install: Any, monkeypatch: pytest.MonkeyPatch, text: str, numbers: tuple[int, int, int]
) -> None:
    def told(_package: str) -> str:
        return text

    monkeypatch.setattr(install.importlib.metadata, "version", told)
    assert install.version_of("any") == numbers


def test_the_webuis_packages_are_held(install: Any) -> None:
    lines = install.constraints().split()
    assert any(line.startswith("numpy==") for line in lines) and any(line.startswith("torch==") for line in lines)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in 3.11")
def test_it_installs_what_pyproject_lists(install: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    faces = project["optional-dependencies"]["faces"]
    assert install.REQUIREMENT in faces
    others = {line.split(">")[0] for line in [*faces, *project["dependencies"]]} - {"onnxruntime"}
    assert others <= set(install.PINNED) | {"safetensors"}  # the WebUI has them


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_skip_install_is_honoured(how: str, tmp_path: Path) -> None:
    """In an interpreter that has none of the packages, nothing is asked of pip."""
    command = [sys.executable, "-I", "-S", str(ROOT / "install.py")]
    done = subprocess.run(
        [*command, "--skip-install"] if how == "flag" else command,
        env={"COMMANDLINE_ARGS": "--api --skip-install"} if how == "environment" else {},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_standard_library_only() -> None:
    code = f"import runpy; runpy.run_path({str(ROOT / 'install.py')!r}); runpy.run_path({str(ROOT / 'preload.py')!r})"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)


def test_flags() -> None:
    import argparse
    import runpy

    parser = argparse.ArgumentParser()
    runpy.run_path(str(ROOT / "preload.py"))["preload"](parser)
    flags = parser.parse_args(["--dp-adapter-dir", "D:/models", "--dp-adapter-cache", "3"])
    assert (flags.dp_adapter_dir, flags.dp_adapter_cache) == ("D:/models", 3)
    assert vars(parser.parse_args([])).keys() == {"dp_adapter_dir", "dp_adapter_cache", "dp_adapter_loglevel"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_the_page_on_security_lists_what_a_webui_user_gets(install: Any) -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    section = page.partition("## Checks of the dependencies")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["faces"], *extras["insightface"], *extras["clip"]]
    names = {re.split(r"[<>=]", one)[0] for one in asked}
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])} == names
    bounds = {re.split(r"[<>=]", one)[0]: one for one in asked}
    for name in ("onnxruntime", "insightface", "transformers"):
        row = next(row for row in rows if row.startswith(f"| `{name}`"))
        assert f"`{bounds[name].removeprefix(name)}`" in row
    assert bounds["onnxruntime"] == install.REQUIREMENT
