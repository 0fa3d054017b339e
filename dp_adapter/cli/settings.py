"""``dp-adapter settings``: the request's fields, for people and for programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp_adapter.settings import Settings


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``settings`` to the command line."""
    parser = subparsers.add_parser("settings", help="show or check the settings", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--schema", action="store_true", help="JSON schema of the request")
    what.add_argument("--defaults", action="store_true", help="a settings file with every field at its default")
    what.add_argument("--table", action="store_true", help="every field with its range and meaning")
    what.add_argument("--check", type=Path, metavar="FILE", help="check a settings file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises SettingsError for a file that is not valid, naming the field."""
    from dp_adapter.settings import Settings, json_schema, walk_fields

    if args.schema:
        print(json.dumps(json_schema(), indent=2))
    elif args.defaults:
        print(json.dumps(Settings().to_dict(), indent=2))
    elif args.table:
        for path, info in walk_fields():
            print(f"{path:32} {info.kind.describe()}\n{'':32} {info.help}")
    else:
        read_settings(args.check)
        print(f"{args.check} is valid.")
    return 0


def request_from(file: Path | None, changes: Mapping[str, Any], assignments: Sequence[str]) -> Settings:
    """The settings file, else the defaults; then changes by dotted path, then ``--set``.

    Raises:
        SettingsError: names the field.
    """
    from dp_adapter.settings import Settings

    settings = read_settings(file) if file else Settings()
    return settings.with_fields({**changes, **parse_assignments(assignments)})


def read_settings(path: Path) -> Settings:
    """The settings in a JSON file.

    Raises:
        SettingsError: the file is missing, or not valid.
    """
    from dp_adapter.errors import SettingsError
    from dp_adapter.settings import Settings
    from dp_adapter.text_files import read_text

    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise SettingsError("settings", f"{path} cannot be read ({error})", "Check the path.") from error
    return Settings.from_json(text)


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Values by dotted path, from ``FIELD=VALUE`` each.

    Raises:
        SettingsError: there is no such field, or no value.
    """
    from dp_adapter.errors import SettingsError
    from dp_adapter.settings import field_at

    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise SettingsError(path, "no value was given", "Write --set FIELD=VALUE.")
        changes[path] = field_at(path).kind.parse(value)
    return changes
