"""``python -m dp_adapter.demo``: writes the demo page and the README's pictures."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dp_adapter.demo import page, sections, sheets
from dp_adapter.demo.make_pictures import DemoPictures, FinishedShot
from dp_adapter.demo.people import gather_people
from dp_adapter.demo.shots import SECTIONS, SEED, STEPS, Programme, Shot
from dp_adapter.errors import DPAdapterError
from dp_adapter.session import Session
from dp_adapter.small_base import webui_files
from dp_adapter.small_base.webui_files import SHIPPED

BASE = SHIPPED / f"{webui_files.NAME}.safetensors"
ADAPTER = SHIPPED / webui_files.ADAPTER


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dp_adapter.demo", description=__doc__)
    parser.add_argument("--photo", type=Path, help="a portrait of yours, in the place of the astronaut's")
    parser.add_argument("--prompt", help="one prompt for the arms and the weights, in the small base's words")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the sampler, for each picture")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="this section; may be given more than once")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR")
    parser.add_argument("--base", type=Path, default=BASE, help="another model with the small base's 128 px")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="the adapter for it")
    args = parser.parse_args()
    programme = Programme(seed=args.seed, steps=args.steps, sections=tuple(args.only or SECTIONS))
    if args.prompt:
        programme = replace(programme, prompts=(args.prompt,))
    if args.photo:
        programme = replace(programme, edits=tuple(replace(edit, person=0) for edit in programme.edits))
    try:
        make(programme, args.out, args.photo, args.base, args.adapter)
    except DPAdapterError as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    return 0


def make(
    programme: Programme, out: Path, photo: Path | None = None, base: Path = BASE, adapter: Path = ADAPTER
) -> Path:
    """Writes ``index.html`` and the sheets into a folder.

    Raises:
        DPAdapterError: the photo cannot be read or shows no face, or a model is missing or damaged.
    """
    started = time.perf_counter()
    photos = out / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    session = Session([base.parent], paths_allowed=True)
    people = gather_people(session, programme.people, photo, photos)
    _show_progress(f"{len(people)} people; loading {base.name}")
    workers = DemoPictures(base)

    def shoot(wanted: Sequence[Shot]) -> Mapping[Shot, FinishedShot]:
        return workers.make(
            wanted,
            programme.steps,
            lambda done, total, shot: _show_progress(f"picture {done} of {total}: {shot.title}"),
        )

    story = sections.make_story(session, programme, people, adapter, photos, shoot)
    target = out / "index.html"
    page.write(target, story, base.stem, time.perf_counter() - started)
    written = [target, *sheets.write(out, story)]
    seconds = time.perf_counter() - started
    print("\n".join(f"-> {path}" for path in written))  # noqa: T201 - the command's result
    print(f"{seconds:.0f} s")  # noqa: T201
    return target


def _show_progress(words: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{words}")
        sys.stderr.flush()
    else:
        sys.stderr.write(f"{words}\n")


if __name__ == "__main__":
    sys.exit(main())
