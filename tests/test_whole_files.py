"""Files that appear whole or not at all, also among processes, some of which are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dp_adapter import whole_files
from dp_adapter.whole_files import move, sweep, write_whole

ENDLESS = """
import sys, time
from pathlib import Path
from dp_adapter.whole_files import write_whole
while True:
    for byte in b"ab":
        with write_whole(Path(sys.argv[1])) as beside, beside.open("wb") as file:
            print("writing", flush=True)
            for _ in range(64):
                file.write(bytes([byte]) * 4096)
                time.sleep(0.0002)
"""
ONCE = """
import sys, time
from pathlib import Path
from dp_adapter.whole_files import write_whole
sys.stdin.read(1)
try:
    with write_whole(Path(sys.argv[1]), replace=False) as beside:
        beside.write_text(sys.argv[2])
except FileExistsError:
    print("taken")
else:
    print("saved")
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def left_by(folder: Path, machine: str, process: int, run: str = "0" * 8) -> Path:
    """A folder as a killed writer leaves it."""
    path = folder / f".dp_adapter-{machine}-{process}-{run}-{'0' * 8}.tmp"
    path.mkdir()
    (path / ".tmpx78nsJ").write_bytes(b"half")
    return path


def dead_process() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.txt"
    with write_whole(target) as beside:
        beside.write_text("one")
        assert names(target.parent) == [beside.parent.name]
    with pytest.raises(ZeroDivisionError), write_whole(target) as beside:
        beside.write_text("two")
        _ = 1 / 0
    assert target.read_text() == "one"
    with pytest.raises(FileExistsError), write_whole(target, replace=False) as beside:
        beside.write_text("three")
    with write_whole(target) as beside:
        beside.write_text("four")
    assert target.read_text() == "four" and names(target.parent) == ["a.txt"]


def test_a_folder_too(tmp_path: Path) -> None:
    with write_whole(tmp_path / "step") as beside:
        beside.mkdir()
        (beside / "a").write_text("x")
    with pytest.raises(ZeroDivisionError), write_whole(tmp_path / "other") as beside:
        beside.mkdir()
        _ = 1 / 0
    assert names(tmp_path) == ["step"] and names(tmp_path / "step") == ["a"]


def test_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with write_whole(tmp_path / "a", replace=False) as beside:
        beside.write_text("one")
    (tmp_path / "b").write_text("two")
    with pytest.raises(FileExistsError):
        move(tmp_path / "b", tmp_path / "a", replace=False)
    with pytest.raises(FileNotFoundError):
        move(tmp_path / "none", tmp_path / "c", replace=False)
    assert names(tmp_path) == ["a", "b"] and (tmp_path / "a").read_text() == "one"


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(NotADirectoryError), write_whole(tmp_path / "a" / "b"):
        pass


def test_what_is_swept(tmp_path: Path) -> None:
    here, dead = whole_files._machine(), dead_process()  # pyright: ignore[reportPrivateUsage]
    gone = [left_by(tmp_path, here, dead), left_by(tmp_path, here, os.getpid())]  # as in a container that was restarted
    old = left_by(tmp_path, "0" * 8, dead, "1" * 8)
    os.utime(old, (0, 0))
    kept = [left_by(tmp_path, "0" * 8, dead), left_by(tmp_path, here, os.getppid())]  # of another machine; running
    others = ["a.part", "a.tmp", ".dp_adapter-x.tmp", ".dp_adapter-identities.safetensors", f"{here}.tmp"]
    for name in others:
        (tmp_path / name).write_text("another program's")
        os.utime(tmp_path / name, (0, 0))
    with write_whole(tmp_path / "target") as beside:
        beside.write_text("x")
        sweep(tmp_path)  # its own is in use
    gone = [] if sys.platform == "win32" else gone  # nobody can be asked there
    assert not any(path.exists() for path in [*gone, old])
    assert all(path.exists() for path in kept) and {*others, "target"} <= {*names(tmp_path)}
    sweep(tmp_path / "none")


@pytest.mark.skipif(sys.platform == "win32", reason="there left files go after a day")
def test_killed_writers_leave_nothing_for_good(tmp_path: Path) -> None:
    target, chance = tmp_path / "a", random.Random(0)
    target.write_bytes(b"c" * 4096 * 64)
    leftovers = 0
    for _ in range(12):
        writer = subprocess.Popen([sys.executable, "-c", ENDLESS, str(target)], stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        time.sleep(chance.random() / 50)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        leftovers += len(names(tmp_path)) > 1
        content = target.read_bytes()
        assert len(content) == 4096 * 64 and len(set(content)) == 1, "half a file"
    assert leftovers, "no writer was killed while it wrote, so nothing was tried"
    with write_whole(target) as beside:
        beside.write_text("whole")
    assert names(tmp_path) == ["a"] and target.read_text() == "whole"


def test_of_many_processes_one_saves(tmp_path: Path) -> None:
    target = tmp_path / "a"
    run = [sys.executable, "-c", ONCE, str(target)]
    writers = [
        subprocess.Popen([*run, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for n in range(6)
    ]
    for writer in writers:  # all wait in front of it by now, or nearly
        assert writer.stdin is not None
        writer.stdin.write("x")
        writer.stdin.flush()
    said = [writer.communicate()[0].strip() for writer in writers]
    assert sorted(said) == ["saved", *["taken"] * 5]
    assert names(tmp_path) == ["a"] and target.read_text() == str(said.index("saved"))
