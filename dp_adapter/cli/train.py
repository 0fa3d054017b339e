"""``dp-adapter train``: trains an adapter from a configuration file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``train`` to the command line."""
    parser = subparsers.add_parser(
        "train", help="train an adapter", description=__doc__, epilog="docs/training.md explains the configuration."
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a .toml file, as in examples/training")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint, where there is one")
    parser.add_argument("--dry-run", action="store_true", help="only say what memory and time the run needs")
    parser.add_argument(
        "--tflops", type=float, default=100.0, metavar="N", help="with --dry-run: what the device does, in TFLOPS"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="as data.resolution=256"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """130 when it was stopped; a checkpoint is written then.

    Raises:
        DPAdapterError: see ``training.train.train``.
    """
    from dp_adapter.training.config import read

    config = read(args.config, args.changes)
    if args.dry_run:
        from dp_adapter.training.dry_run import estimate

        print(estimate(config, args.tflops * 1e12).table())
        return 0
    from dp_adapter.training.train import TrainingStopped, train

    try:
        finished = train(config, resume=args.resume, log=_print)
    except TrainingStopped as stopped:
        print(f"dp-adapter: {stopped}", file=sys.stderr)
        return 130
    print(finished)
    return 0


def _print(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
