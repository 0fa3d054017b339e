"""``dp-adapter demo-base``: put the demo's small base into a WebUI."""

from __future__ import annotations

import argparse
from pathlib import Path

from dp_adapter.errors import HostError

_ROOT = Path(__file__).parents[2]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``demo-base`` to the command line."""
    parser = subparsers.add_parser("demo-base", help="the demo's model in a WebUI", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    install = actions.add_parser("install", help="copy it among the WebUI's checkpoints, with what is needed beside it")
    install.add_argument(
        "folder",
        type=Path,
        nargs="?",
        metavar="WEBUI",
        help="the WebUI's folder, or one of its folders of checkpoints; default: the WebUI in whose extensions this is",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Installs.

    Raises:
        HostError: no such folder, or the small base is not here.
    """
    from dp_adapter.demo.base_files import install

    for path in install(args.folder or _surrounding()):
        print(f"-> {path}")
    return 0


def _surrounding() -> Path:
    if _ROOT.parent.name != "extensions":
        raise HostError("This copy of DP-Adapter is not in a WebUI's extensions", "Give the WebUI's folder.")
    return _ROOT.parents[1]
