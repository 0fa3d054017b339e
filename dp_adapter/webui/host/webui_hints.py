"""What a hint says in a WebUI: commands for its own Python, in which this program is not installed, from its folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dp_adapter import hints
from dp_adapter.webui.host.compat import ENTRY

_ROOT = ENTRY.parents[1]  # of the extension


def use_webui_hints() -> None:
    """From now on hints are for this WebUI's user."""
    hints.use(describe_shell())


def describe_shell() -> hints.Shell:
    """How this WebUI's user runs our program and pip: short enough for anybody, and in full for the console."""
    from modules import paths

    root = Path(paths.script_path)
    places = (
        (Path(sys.executable), "python"),
        (_ROOT / "dp_adapter", f"extensions/{_ROOT.name}/dp_adapter"),
        (Path(paths.models_path), "models"),
    )
    near = [_path_from(path, root) for path, _ in places]
    typed, program, models = (_quote(here or name) for here, (_, name) in zip(near, places, strict=True))
    executable, full_program, full_models = (_quote(str(path)) for path, _ in places)
    return hints.Shell(
        program=f"{typed} {program}",
        pip=f"{typed} -m pip",
        models=models,
        where=" in the WebUI's folder" + ("" if all(near) else " (in full in the console)"),
        afterwards=", and start the WebUI again",
        full={
            f"{typed} {program}": f"{executable} {full_program}",
            f"{typed} -m pip": f"{executable} -m pip",
            f"--models-dir {models}": f"--models-dir {full_models}",
        },
        folders=_name_folders(root, getattr(paths, "data_path", root), paths.models_path),
    )


def _path_from(path: Path, root: Path) -> str:
    """A path as it is typed in the WebUI's folder; empty where it lies further than beside it."""
    try:
        relative = os.path.relpath(path, root)
    except ValueError:  # another drive of Windows
        return ""
    return "" if Path(relative).parts[:2] == ("..", "..") else relative


def _quote(path: str) -> str:
    return f'"{path}"' if " " in path else path


def _name_folders(root: Path, data: str | Path, models: str) -> dict[str, str]:
    """What sentences call this server's folders."""
    named = [(Path.home(), "~"), (_ROOT, f"extensions/{_ROOT.name}"), (Path(models), "models"), (Path(data), "")]
    named.append((root, ""))
    return {str(form): name for path, name in named for form in (path.resolve(), path) if len(form.parts) > 1}
