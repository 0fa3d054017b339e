"""What a hint tells a user to type, and how a sentence names places: one way on a command line, another in a WebUI.

A shell says once where its user is (``use``); whoever makes a sentence need not know.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_ABSOLUTE = re.compile(r"""(?<![\w:/\\.~…-])(?:[A-Za-z]:[\\/]|/)[^\s'"(),;:<>]+""")


@dataclass(frozen=True)
class Shell:
    """Where the user is.

    Attributes:
        program: begins a command line of this program.
        pip: begins one that installs packages.
        models: the models folder that downloads go to, as it is typed; empty for the program's own.
        where: in which folder these are typed, as the end of a sentence; empty where it does not matter.
        afterwards: what else it takes until an installed package is seen.
        full: what is typed → the same in full, which only a console may show.
        folders: the server's folders → what sentences call them, empty for the one that all else lies in. Without any,
            places are named as they are.
    """

    program: str = "dp-adapter"
    pip: str = "pip"
    models: str = ""
    where: str = ""
    afterwards: str = ""
    full: Mapping[str, str] = field(default_factory=dict[str, str])
    folders: Mapping[str, str] = field(default_factory=dict[str, str])


_COMMAND_LINE = Shell()
_here = [_COMMAND_LINE]  # of this process, as its logging is


def use(shell: Shell | None) -> None:
    """From now on sentences are for a user of this shell; None is the command line."""
    _here[0] = shell or _COMMAND_LINE


def command(arguments: str) -> str:
    """A command line of this program, quoted, as in ``'dp-adapter models get …'``."""
    shell = _here[0]
    folder = f" --models-dir {shell.models}" if shell.models and arguments.startswith("models ") else ""
    return f"'{shell.program} {arguments}{folder}'{shell.where}"


def install(package: str, extra: str) -> str:
    """How to install a package that is optional here."""
    shell = _here[0]
    if shell is _COMMAND_LINE:
        return f"pip install {package} (or pip install 'dp-adapter[{extra}]')"
    return f"'{shell.pip} install {package}'{shell.where}{shell.afterwards}"


def hide_folders(words: str) -> str:
    """Words as this user may read them: a server's folders are named by what they are to the WebUI."""
    folders = _here[0].folders
    if not folders:
        return words
    for folder in sorted(folders, key=len, reverse=True):
        name, place = folders[folder], re.escape(folder)
        words = re.sub(rf"{place}[\\/]", f"{name}/" if name else "", words)
        words = re.sub(rf"{place}(?![\w-]|\.\w)", name or "the WebUI's folder", words)
    return _ABSOLUTE.sub(_last_part, words)


def spell_out(words: str) -> str:
    """The same for the console, with commands as they can be typed in any folder."""
    shell = _here[0]
    for short, full in shell.full.items():
        words = words.replace(short, full)
    return words.replace(f"'{shell.where}", "'") if shell.where else words


def _last_part(match: re.Match[str]) -> str:
    """The end of a path that is none of the WebUI's; what names no place on this machine stays."""
    parts = [part for part in re.split(r"[\\/]", match[0]) if part]
    posix = match[0].startswith("/")
    here = os.path.exists(os.sep + parts[0]) if parts else False  # noqa: PTH110 - Path's raises for long names
    if len(parts) < 2 or (posix and not here):
        return match[0]
    return f"…/{parts[-1]}"
