"""``dp-adapter``: the whole product on a command line, without a WebUI."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dp_adapter import __version__
from dp_adapter.cli import (
    demo_base,
    evaluate,
    faces,
    generate,
    identities,
    inspect,
    models,
    modes,
    personalise,
    prepare,
    regions,
    settings,
    train,
    tune,
)
from dp_adapter.errors import DPAdapterError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dp-adapter", description="A person's identity in the face, the prompt elsewhere."
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    making = (generate, personalise, train, prepare, evaluate, tune)
    for command in (*making, faces, regions, identities, inspect, models, modes, settings, demo_base):
        command.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 for success, 1 for an error told in words, 130 when interrupted."""
    args = build_parser().parse_args(arguments)
    try:
        return args.run(args)
    except DPAdapterError as error:
        print(f"dp-adapter: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has seen enough, as in "| head"
        sys.stdout = None
        return 0
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"dp-adapter: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dp-adapter: interrupted", file=sys.stderr)
        return 130
