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
    install.add_argument(
        "--ckpt-dir",
        type=Path,
        metavar="FOLDER",
        help="where the WebUI looks for checkpoints, if it is started with the flag of that name",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Installs.

    Raises:
        HostError: no such folder, a WebUI that could not load it, or the small base is not here.
    """
    from dp_adapter.hosts.pipelines.single_file import made_for
    from dp_adapter.small_base.webui_files import ADAPTER, NAME, SHIPPED, install

    webui: Path | None = args.folder
    if webui is None and (args.ckpt_dir is None or _in_extensions()):
        webui = _find_webui()
    installed = install(webui, checkpoints=args.ckpt_dir)
    for path in installed:
        print(f"-> {path}")
    if installed[-1].name != ADAPTER:
        print(f"Its adapter is {SHIPPED / ADAPTER}: copy it into the WebUI's models/dp_adapter.")
    print(f"Choose {NAME} as the WebUI's checkpoint, {made_for(installed[0])}.")
    return 0


def _in_extensions() -> bool:
    return _ROOT.parent.name == "extensions"


def _find_webui() -> Path:
    if not _in_extensions():
        raise HostError("This copy of DP-Adapter is not in a WebUI's extensions", "Give the WebUI's folder.")
    return _ROOT.parents[1]
