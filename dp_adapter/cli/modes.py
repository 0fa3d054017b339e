"""``dp-adapter modes``: the edit modes and what each does."""

from __future__ import annotations

import argparse
from pathlib import Path

from dp_adapter.cli.models import models_root


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``modes`` to the command line."""
    parser = subparsers.add_parser("modes", help="what each edit mode does, your own included", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this one, as 'age' or 'custom:NAME'")
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help="folder with dp_adapter/modes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """1 where a mode of the user's own cannot be used.

    Raises:
        SettingsError: there is no mode of this name.
    """
    from dp_adapter.errors import SettingsError
    from dp_adapter.modes import Modes, describe_mode

    modes = Modes([models_root(args.models_dir)])
    bad = 0
    for name in [args.name] if args.name else modes.names():
        try:
            mode = modes.of(name)
        except SettingsError as error:
            if args.name:
                raise
            bad = 1
            print(f"{name}\n  {error}")
            continue
        needs = f" (asks for {', '.join(mode.needs)})" if mode.needs else ""
        print("\n  ".join([f"{name}{needs}", *describe_mode(mode)]))
    return bad
