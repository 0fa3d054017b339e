"""``dp-adapter models``: list, fetch and check the known model files."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dp_adapter import catalog
from dp_adapter.catalog import ModelFile
from dp_adapter.download import part_of
from dp_adapter.errors import CatalogError

ROOT_VARIABLE = "DP_ADAPTER_MODELS"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``models`` with its actions to the command line."""
    parser = subparsers.add_parser("models", help="list, get and verify model files", description=__doc__)
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    common = models_dir_parser()
    listing = actions.add_parser("list", parents=[common], help="known files and which of them are here")
    listing.add_argument("--base", choices=catalog.BASES, help="only files for this base model (and those for any)")
    listing.add_argument("--kind", choices=catalog.KINDS)
    get = actions.add_parser("get", parents=[common], help="download a file, or resume its download")
    get.add_argument("ids", nargs="+", metavar="ID", help="id or file name as in 'list', or an insightface pack's name")
    get.add_argument("--to", type=Path, dest="models_dir", metavar="DIR", help="the same as --models-dir")
    get.add_argument("--yes", action="store_true", help="do not ask")
    check = actions.add_parser("verify", parents=[common], help="compare size and SHA-256 with the catalogue")
    check.add_argument("what", nargs="*", metavar="ID|PATH", help="default: every known file that is here")
    actions.add_parser("where", parents=[common], help="the folders in which files are looked for")


def models_dir_parser() -> argparse.ArgumentParser:
    """A parent for the parsers of actions that need the models folder."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--models-dir",
        type=Path,
        metavar="DIR",
        help=f"models folder (default: ${ROOT_VARIABLE}, else models/ of this repository)",
    )
    return common


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command; 0, or 1 where ``verify`` found a bad file or ``get`` was declined.

    Raises:
        CatalogError: unknown id, failed download, missing file.
    """
    root = models_root(args.models_dir)
    if args.action == "list":
        return _list(root, args.base, args.kind)
    if args.action == "get":
        models = [model for name in args.ids for model in catalog.find_all(name)]
        return max(_get(model, root, yes=args.yes) for model in models)
    if args.action == "verify":
        return _verify(root, args.what)
    return _show_folders(root)


def models_root(given: Path | None = None) -> Path:
    """The models folder: ``given``, else $DP_ADAPTER_MODELS, else ``models`` beside the package."""
    if given is not None:
        return given
    if named := os.environ.get(ROOT_VARIABLE):
        return Path(named)
    return Path(__file__).parents[2] / "models"


def describe_state(model: ModelFile, root: Path) -> str:
    """'present', 'partial N %', 'wrong size', 'missing'; from sizes alone, so that a list is quick."""
    if (path := catalog.locate(model, [root])) is not None:
        return "present" if model.size in (None, path.stat().st_size) else "wrong size"
    part = part_of(model.path_in(root))
    if model.size and part.is_file():
        return f"partial {100 * part.stat().st_size // model.size} %"
    return "missing"


def _list(root: Path, base: str | None, kind: str | None) -> int:
    rows = [("ID", "KIND", "BASE", "SIZE", "HERE", "LICENCE")]
    for model in catalog.load():
        if (base is None or model.base in (base, "any")) and kind in (None, model.kind):
            here = describe_state(model, root)
            if here == "missing" and model.sha256 is None:
                here = "missing, by hand"
            rows.append((model.id, model.kind, model.base, _megabytes(model), here, model.licence))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nIn {root}. 'present' goes by size; 'models verify' compares checksums.")
    return 0


def _get(model: ModelFile, root: Path, *, yes: bool) -> int:
    downloads = bool(model.sha256) and not model.shipped and catalog.locate(model, [root]) is None
    if downloads and not _confirm(model, root, yes=yes):
        print("Nothing downloaded.")
        return 1
    meter = Meter(model.filename)
    try:
        path = catalog.fetch(model, root, progress=meter)
    finally:
        meter.close()
    print(f"{path}: complete, SHA-256 right")
    return 0


def _confirm(model: ModelFile, root: Path, *, yes: bool) -> bool:
    print(f"{model.title} ({model.id})", f"  size     {_megabytes(model)}", f"  licence  {model.licence}", sep="\n")
    print(f"  note     {model.note}", f"  from     {model.url}", f"  to       {model.path_in(root)}", sep="\n")
    if yes:
        return True
    if not sys.stdin.isatty():
        raise CatalogError("the download needs a confirmation and there is no terminal to ask on", "Add --yes.")
    return input("Download? [y/N] ").strip().casefold() in ("y", "yes")


def _verify(root: Path, what: Sequence[str]) -> int:
    bad = 0
    chosen = _choose_files(root, what)
    if not chosen:
        print(f"Nothing was compared: none of the known files is in {root}. Name another folder with --models-dir.")
    for model, path in chosen:
        meter = Meter(path.name)
        try:
            if model is None:
                model = catalog.identify(path, meter)  # noqa: PLW2901 - the file says what it is
                if model is None:
                    raise CatalogError(f"{path} is no file of the catalogue, or is damaged")
            else:
                catalog.verify(model, path, meter)
        except CatalogError as error:
            bad += 1
            print(f"BAD  {error}")
        else:
            print(f"ok   {path} is {model.id}")
        finally:
            meter.close()
    return 1 if bad else 0


def _choose_files(root: Path, what: Sequence[str]) -> list[tuple[ModelFile | None, Path]]:
    """(model, path) to compare; the model is None for a path given by the user."""
    if not what:
        found = ((model, catalog.locate(model, [root])) for model in catalog.load() if model.sha256)
        return [(model, path) for model, path in found if path is not None]
    chosen: list[tuple[ModelFile | None, Path]] = []
    for name in what:
        if (path := Path(name)).is_file():
            chosen.append((None, path))
        else:
            model = catalog.find(name)
            chosen.append((model, catalog.locate(model, [root]) or model.path_in(root)))
    return chosen


def _show_folders(root: Path) -> int:
    print(root)
    for folder in sorted({model.folder for model in catalog.load() if model.folder}):
        print(f"  {Path(folder)}: {', '.join(dict.fromkeys(m.kind for m in catalog.load() if m.folder == folder))}")
    print("A file is also found directly in the models folder and in its direct subfolders.")
    return 0


def _megabytes(model: ModelFile) -> str:
    return "unknown" if model.size is None else f"{model.size / 1e6:,.1f} MB"


class Meter:
    """Progress on standard error: percentage and MB/s; silent where that is no terminal."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown = False
        self.first: tuple[float, int] | None = None
        self.last = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self.first = self.first or (now, done)
        if not sys.stderr.isatty() or (now - self.last < 0.2 and done < total):
            return
        self.last, self.shown = now, True
        begun, offset = self.first
        speed = (done - offset) / 1e6 / max(now - begun, 1e-3)  # a resumed part took no time now
        print(f"\r{self.name}  {100 * done // total:3d} %  {speed:6.1f} MB/s", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line."""
        if self.shown:
            print(file=sys.stderr)
