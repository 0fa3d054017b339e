"""``dp-adapter prepare``: from a folder of pictures to shards that training reads."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_adapter.cli.models import ROOT_VARIABLE, models_root
from dp_adapter.errors import SettingsError
from dp_adapter.settings.messages import split_list
from dp_adapter.training.prepare.prepare_options import PrepareOptions

if TYPE_CHECKING:
    from dp_adapter.training.prepare.work_runners import Runner

_NUMBERS = {
    "size": ("PX", "short side of a stored picture: the resolution of training; smaller ones are not enlarged"),
    "min-photos": ("N", "drop people with fewer photos"),
    "min-face": ("PX", "drop smaller faces"),
    "min-sharpness": ("X", "drop blurred faces; 'dp-adapter faces' shows the figure of a photo"),
    "max-yaw": ("DEGREES", "drop heads that are turned farther"),
    "max-pitch": ("DEGREES", "drop heads that look farther up or down"),
}
_EXPERT_NUMBERS = {
    "same": ("COSINE", "least mean SFace cosine of two groups of faces that are one person"),
    "min-score": ("X", "drop faces that the detector is less sure of, 0.6 to 1"),
    "near-bits": ("N", "near duplicates: most bits of 64 in which perceptual hashes differ, and"),
    "near-cosine": ("COSINE", "least cosine of their faces"),
    "shard-mb": ("MIB", "most of a shard"),
}
_ORIGINS = {
    "table": "from the table",
    "sidecar": "from files beside the pictures",
    "measured": "generated",
}
_SHOWN_PROBLEMS = 5  # caption files of which the reason is printed


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``prepare`` to the command line."""
    parser = subparsers.add_parser("prepare", help="make training shards of a folder of pictures", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="pictures, also in sub-folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder, or one to go on in")
    parser.add_argument("--crop", choices=("whole", "head"), default="whole", help="head and shoulders, or all of it")
    parser.add_argument(
        "--several", choices=("drop", "largest", "each"), default="drop", help="what to do with several faces"
    )
    parser.add_argument(
        "--people", choices=("faces", "folders", "table"), default="faces", help="what tells who is in a picture"
    )
    parser.add_argument("--captions", type=Path, metavar="FILE", help="CSV with a header, or JSON lines")
    parser.add_argument("--file-column", metavar="NAME", help="of the table: path below FOLDER (default: file)")
    parser.add_argument("--caption-column", metavar="NAME", help="of the table (default: caption, text or prompt)")
    _add_numbers(parser, _NUMBERS)
    parser.add_argument("--lossless", action="store_true", help="PNG instead of JPEG")
    parser.add_argument(
        "--encoders", default="sface", metavar="LIST", help="of sface (always), insightface, transface; with commas"
    )
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help=f"models folder (default: ${ROOT_VARIABLE})")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    parser.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS", help="run on a Ray cluster; without ADDRESS on this machine"
    )
    parser.add_argument("--keep-work", action="store_true", help="so that pictures can be added later")
    _add_numbers(parser.add_argument_group("for experts"), _EXPERT_NUMBERS)
    parser.set_defaults(run=run)


def _add_numbers(group: argparse._ActionsContainer, numbers: Mapping[str, tuple[str, str]]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Adds options that are numbers; their types and defaults are those of ``PrepareOptions``."""
    for name, (metavar, text) in numbers.items():
        default: int | float = getattr(PrepareOptions, name.replace("-", "_"))
        group.add_argument(
            f"--{name}", type=type(default), default=default, metavar=metavar, help=f"{text} (default: {default:g})"
        )


def run(args: argparse.Namespace) -> int:
    """Writes the shards; returns 0.

    Raises:
        DPAdapterError: an option, the folder, a table of captions or a network is wrong or missing.
    """
    from dp_adapter.training.prepare.find_captions import Captions
    from dp_adapter.training.prepare.prepare_shards import prepare

    names = [name.replace("-", "_") for name in (*_NUMBERS, *_EXPERT_NUMBERS)]
    options = PrepareOptions(
        crop=args.crop,
        several=args.several,
        people=args.people,
        encoders=tuple(name for name in split_list(args.encoders) if name),
        lossless=args.lossless,
        **{name: getattr(args, name) for name in names},
    )
    runner = _choose_runner(args)
    captions = Captions(args.folder, args.captions, args.file_column, args.caption_column)
    models = [models_root(args.models_dir)]
    started = time.monotonic()
    with _ProgressBar() as bar:
        manifest, finished_before = prepare(
            args.folder, args.out, options,
            captions=captions, models=models, runner=runner, progress=bar.update, keep_work=args.keep_work,
        )  # fmt: skip
    if finished_before:
        print(f"{args.out} was finished before; what came into {args.folder} since is not in it.")
    _print_summary(manifest, args.out, time.monotonic() - started)
    for path, reason in list(captions.problems.items())[:_SHOWN_PROBLEMS]:
        print(f"  {path}: {reason}")
    return 0


def _choose_runner(args: argparse.Namespace) -> Runner:
    from dp_adapter.training.prepare.work_runners import run_here, run_in_processes, run_on_ray

    if args.jobs < 1:
        raise SettingsError("jobs", f"{args.jobs} is less than 1")
    if args.ray is not None:
        if args.jobs > 1:
            raise SettingsError("jobs", "--jobs and --ray were both given", "Leave one out: Ray uses all its CPUs.")
        return run_on_ray(args.ray or None)
    return run_in_processes(args.jobs) if args.jobs > 1 else run_here


def _print_summary(manifest: Mapping[str, Any], out: Path, seconds: float) -> None:
    counts = manifest["counts"]
    print(f"{counts['samples']} samples of {counts['people']} people from {counts['pictures']} pictures")
    for reason, count in counts["dropped"].items():
        print(f"  dropped {count}: {reason}")
    print("captions: " + ", ".join(f"{count} {_ORIGINS[origin]}" for origin, count in counts["captions"].items()))
    if counts["unreadable_captions"]:
        print(f"  {counts['unreadable_captions']} caption files cannot be read, and were left out")
    print(f"{len(manifest['shards'])} shards, {seconds:.1f} s, {seconds / counts['pictures']:.2f} s a picture")
    print(f"-> {out / 'statistics.html'}")


class _ProgressBar:
    """A progress bar on stderr that shows the counts."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _ProgressBar:
        return self

    def update(self, done: int, total: int, counts: Mapping[str, int]) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(unit="picture", desc="prepare", mininterval=0.5, total=total)
        self._bar.set_postfix({name: n for name, n in counts.items() if name != "files"}, refresh=False)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
