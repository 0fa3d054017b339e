"""Makes docs/settings.md from the fields: ``python -m dp_adapter.settings.reference_page > docs/settings.md``."""

from __future__ import annotations

import json
import sys

from dp_adapter.settings.fields import FieldInfo
from dp_adapter.settings.nested_records import is_leaf, walk
from dp_adapter.settings.request import VERSION, Settings

_HEAD = f"""# Settings

Everything a generation can be asked for, in one object: the panel, the API, infotext, X/Y/Z and the command line all
make it. Made by `python -m dp_adapter.settings.reference_page > docs/settings.md`; do not edit.

* As JSON it is an object of the fields below, nested at the dots, with `"version": {VERSION}` beside them. Whatever
  is not given takes its default. `references[]` and `regions[]` are the items of lists.
* Unknown keys, wrong types and values out of range are refused by name, with the nearest valid value. Numbers in quotes
  are text.
* Persons and faces are numbers from 0 here, and are counted from 1 wherever people read: `"identity": 1` is person 2 in
  the panel, in messages, on axes and in infotext, which says "person 2" (earlier versions wrote the plain number).
* `null` means automatic. What a mode sets, it sets only where the field is `null`.
* A field in the items of a list has the item's number, counted from 1, after its infotext name.

| Field | Label | Value | Default | Infotext | Meaning |
|---|---|---|---|---|---|
"""


def render_page() -> str:
    """The whole page."""
    return _HEAD + "".join(_row(path, info) for path, info in walk(Settings) if is_leaf(info))


def _row(path: str, info: FieldInfo) -> str:
    default = "required" if info.required else f"`{json.dumps(info.kind.write(info.default))}`"
    cells = (f"`{path}`", info.label, info.kind.describe(), default, f"`{info.infotext}`", info.help)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    sys.stdout.write(render_page())
