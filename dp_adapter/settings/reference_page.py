"""Makes docs/settings.md from the fields: ``python -m dp_adapter.settings.reference_page > docs/settings.md``."""

from __future__ import annotations

import json
import sys
import textwrap

from dp_adapter.settings.fields import FieldInfo
from dp_adapter.settings.nested_records import is_leaf, walk
from dp_adapter.settings.request import VERSION, Settings

_WIDTH = 120
_HEAD = f"""# Settings

Everything a generation can be asked for, in one object: the panel, the API, infotext, X/Y/Z and the command line all
make it. (This page is made by `python -m dp_adapter.settings.reference_page > docs/settings.md`; do not edit it.)

* As JSON it is an object of the fields below, nested at the dots, with `"version": {VERSION}` beside them. Whatever is
  not given takes its default. `references[]` and `regions[]` are the items of lists.
* On the command line: `--set FIELD=VALUE`.
* Unknown keys, wrong types and values out of range are refused by name, with the nearest valid value. Numbers in quotes
  are text.
* Persons and faces are numbers from 0 here, and are counted from 1 wherever people read: `"identity": 1` is person 2 in
  the panel, in messages, on axes and in infotext.
* `null` means automatic. What a mode sets, it sets only where the field is `null`.
* In infotext a field is called `DP-Adapter` and its label (in brackets below) in lower case, as in
  `DP-Adapter text emphasis`; in the items of a list, the item's number follows, counted from 1.

"""


def render_page() -> str:
    """The whole page."""
    return _HEAD + "".join(_item(path, info) for path, info in walk(Settings))


def _item(path: str, info: FieldInfo) -> str:
    """A list item, indented as deep as its field lies in the object."""
    words = f"`{path}`: {info.help}"
    if is_leaf(info):
        default = "required" if info.required else f"default `{json.dumps(info.kind.write(info.default))}`"
        words = f"`{path}` ({info.label}): {info.kind.describe()}; {default}. {info.help}"
    indent = "  " * path.count(".")
    wrapped = textwrap.fill(
        words, _WIDTH, initial_indent=f"{indent}* ", subsequent_indent=f"{indent}  ", break_on_hyphens=False
    )
    return wrapped + "\n"


if __name__ == "__main__":
    sys.stdout.write(render_page())
