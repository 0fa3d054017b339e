"""Files that appear whole or not at all: written in a folder of our own beside their place, then moved there.

In a folder, since libraries write temporary files of their own beside what they are told to write (safetensors does).
A writer that was killed leaves its folder behind; whoever writes next to it removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Generator
from functools import cache
from pathlib import Path
from uuid import uuid4

_NAME = re.compile(r"\.dp_adapter-([0-9a-f]{8})-(\d{1,10})-([0-9a-f]{8})-[0-9a-f]{8}\.tmp")
_STALE = 24 * 3600  # seconds without a change, of a writer that cannot be asked
_RUN = uuid4().hex[:8]  # a process in a container often has the number of the one before it


@contextlib.contextmanager
def write_whole(target: Path, *, replace: bool = True) -> Generator[Path, None, None]:
    """Gives a path to write a file to (or a folder), which is moved to ``target`` in the end, or removed on an error.

    The folder is made; what killed writers left in it is removed.

    Args:
        replace: whether ``target`` may be there already.

    Raises:
        FileExistsError: it is, also where another process was faster. OSError: it cannot be written.
    """
    if target.parent.is_file():  # mkdir's FileExistsError would read as if the target were there
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target.parent))
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    folder = target.with_name(f".dp_adapter-{_machine()}-{os.getpid()}-{_RUN}-{uuid4().hex[:8]}.tmp")
    folder.mkdir(mode=0o700)
    try:
        beside = folder / f"{target.name}.tmp"
        yield beside
        move(beside, target, replace=replace)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move(source: Path, target: Path, *, replace: bool) -> None:
    """Moves a file within a file system; of several that move to one place without replacing, one succeeds.

    Raises:
        FileExistsError: ``target`` is there. OSError: it cannot be moved.
    """
    if replace:
        source.replace(target)
    elif sys.platform == "win32":
        source.rename(target)  # refuses there what POSIX replaces
    else:
        _move_without_replacing(source, target)


def _move_without_replacing(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:  # FAT, exFAT and some network folders have no links
        target.touch(exist_ok=False)
        try:
            source.replace(target)
        except BaseException:
            target.unlink()
            raise
    else:
        source.unlink()


def sweep(folder: Path) -> None:
    """Removes what killed writers left in a folder; no other files."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        left = [(Path(entry.path), match) for entry in entries if (match := _NAME.fullmatch(entry.name))]
        for path, match in left:
            with contextlib.suppress(OSError):  # another process was faster
                machine, process, run = match.groups()
                dead = machine == _machine() and not _is_running(int(process), run)
                if dead or time.time() - path.lstat().st_mtime > _STALE:
                    shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int, run: str) -> bool:
    if process == os.getpid():
        return run == _RUN
    if sys.platform == "win32":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


@cache
def _machine() -> str:
    """Where a process number means the same: the machine, or the container on it."""
    import platform

    try:
        numbers = str(Path("/proc/self/ns/pid").readlink())
    except (OSError, NotImplementedError):
        numbers = ""
    return f"{zlib.crc32(f'{platform.node()} {numbers}'.encode()):08x}"
