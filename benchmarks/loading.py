"""What loading an adapter costs: seconds and memory, in ratios to a plain read and to the size of the same file.

    python -m benchmarks.loading [--part 1] [--folder FOLDER]

Writes an SDXL IP-Adapter Plus with random fp16 numbers (0.85 GB) as .safetensors, as today's torch.save file (a zip)
and as a legacy one (a bare pickle), loads each in a process of its own, and removes it. --part takes that part of the
layers' width, for a smaller file. The columns:

    seconds   over those of reading the whole file in pieces, in the same process just before; the system has the file
              in memory both times. "again" is the same file from the session's cache.
    own       memory that the process took for itself, at the peak and afterwards, over the file's size (Linux: RssAnon)
    mapped    pages of files that it sees afterwards, over the file's size (RssFile)
    read      bytes that went through read(), over the file's size (rchar); those that are seen by mapping are not there

A legacy file cannot be mapped: it is read into memory of its own, once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

CONTEXT, INNER, CLIP, TOKENS, DEPTH = 2048, 1280, 1280, 16, 4
WIDTHS = {1: 640, 2: 1280}  # by halvings
CONTAINERS = ("safetensors", "zip", "legacy")


def checkpoint_shapes(part: float) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of ``ip-adapter-plus_sdxl_vit-h`` (docs/formats.md)."""
    from dp_adapter.hosts.attach.sites import site_names

    found: dict[str, tuple[int, ...]] = {}
    for name in site_names("sdxl"):
        for kind in "kv":
            found[f"ip_adapter.{2 * name.index + 1}.to_{kind}_ip.weight"] = int(WIDTHS[name.halvings] * part), CONTEXT
    net: dict[str, tuple[int, ...]] = {"latents": (1, TOKENS, INNER)}
    net |= {"proj_in.weight": (INNER, CLIP), "proj_in.bias": (INNER,)}
    net |= {"proj_out.weight": (CONTEXT, INNER), "proj_out.bias": (CONTEXT,)}
    norms = {"norm_out": CONTEXT}
    for i in range(DEPTH):
        attention, forward = f"layers.{i}.0", f"layers.{i}.1"
        norms |= {f"{attention}.norm1": INNER, f"{attention}.norm2": INNER, f"{forward}.0": INNER}
        net |= {f"{attention}.to_q.weight": (INNER, INNER), f"{attention}.to_kv.weight": (2 * INNER, INNER)}
        net |= {f"{attention}.to_out.weight": (INNER, INNER)}
        net |= {f"{forward}.1.weight": (4 * INNER, INNER), f"{forward}.3.weight": (INNER, 4 * INNER)}
    net |= {f"{name}.{kind}": (width,) for name, width in norms.items() for kind in ("weight", "bias")}
    return found | {f"image_proj.{key}": shape for key, shape in net.items()}


def write(path: Path, container: str, part: float) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {key: torch.randn(shape).half() for key, shape in checkpoint_shapes(part).items()}
    if container == "safetensors":
        save_file(tensors, str(path))
        return
    nested = {
        top: {k.removeprefix(f"{top}."): t for k, t in tensors.items() if k.startswith(f"{top}.")} for top in TOPS
    }
    torch.save(nested, path, _use_new_zipfile_serialization=container == "zip")


TOPS = ("image_proj", "ip_adapter")


def status(name: str) -> int:
    """A line of /proc/self/status or /proc/self/io, in bytes."""
    where = "io" if name == "rchar" else "status"
    line = next(one for one in Path(f"/proc/self/{where}").read_text().splitlines() if one.startswith(name + ":"))
    number = int(line.split()[1])
    return number if where == "io" else number * 1024


def peak_of(run: Callable[[], object]) -> int:
    """The most memory of its own that the process had meanwhile, in bytes."""
    seen, done = [status("RssAnon")], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return max(*seen, status("RssAnon"))


def load(path: Path) -> dict[str, float]:
    """Loads the file in this process, and says what that took."""
    from dp_adapter.session import Session

    def plain() -> float:
        buffer = bytearray(1 << 22)
        started = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        return time.perf_counter() - started

    session = Session([path.parent], paths_allowed=True)
    session.checkpoint(str(path.with_name("warm.safetensors")))  # imports, and what a first call allocates
    size, reading = path.stat().st_size, min(plain() for _ in range(3))
    own, mapped, read = status("RssAnon"), status("RssFile"), status("rchar")
    started = time.perf_counter()
    peak = peak_of(lambda: session.checkpoint(str(path)))
    took = time.perf_counter() - started
    facts = {"own_peak": peak - own, "own": status("RssAnon") - own, "mapped": status("RssFile") - mapped}
    facts["read"] = status("rchar") - read
    started = time.perf_counter()
    session.checkpoint(str(path))
    again = time.perf_counter() - started
    return {name: value / size for name, value in facts.items()} | {"seconds": took / reading, "again": again / reading}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, help="where the files are written; the system's temporary folder")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # what the processes of their own are called with
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.load)))
        return
    columns = ("seconds", "again", "own_peak", "own", "mapped", "read")
    print(f"{'container':12} {'MB':>5} " + " ".join(f"{name.replace('_', ' '):>9}" for name in columns))
    for container in CONTAINERS:
        with TemporaryDirectory(dir=args.folder) as folder:
            path = Path(folder) / ("adapter.safetensors" if container == "safetensors" else "adapter.bin")
            write(path.with_name("warm.safetensors"), "safetensors", 0.1)
            write(path, container, args.part)
            command = [sys.executable, "-m", "benchmarks.loading", "--load", str(path)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own
            facts = json.loads(said)
            size = path.stat().st_size / 1e6
        print(f"{container:12} {size:5.0f} " + " ".join(f"{facts[name]:9.3f}" for name in columns), flush=True)


if __name__ == "__main__":
    main()
