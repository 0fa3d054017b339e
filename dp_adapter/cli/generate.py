"""``dp-adapter generate``: photo and prompt in, pictures and an explanation out."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_adapter.cli.models import models_root
from dp_adapter.cli.settings import request_from
from dp_adapter.errors import SettingsError

if TYPE_CHECKING:
    from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob
    from dp_adapter.session import Explanation
    from dp_adapter.settings import Settings


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``generate`` to the command line."""
    parser = subparsers.add_parser("generate", help="make pictures of a person", description=__doc__)
    parser.set_defaults(run=run)
    parser.add_argument("--base", type=Path, required=True, help="diffusers folder or single file of SD1.5 or SDXL")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for the pictures")
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help="folder with adapters and encoders")
    _add_job(parser.add_argument_group("picture"))
    _add_identity(parser.add_argument_group("identity"))
    _add_machine(parser.add_argument_group("machine"))


def _add_job(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    group.add_argument("--prompt", required=True)
    group.add_argument("--negative", default="", metavar="PROMPT")
    group.add_argument("--width", type=int, help="default: the model's (SD1.5 512, SDXL 1024), or the init picture's")
    group.add_argument("--height", type=int)
    group.add_argument("--steps", type=int, default=25)
    group.add_argument("--guidance", type=float, default=7.0, metavar="CFG")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--batch", type=int, default=1, help="pictures, with seeds counting up")
    group.add_argument("--sampler", default="dpmpp_2m_karras")
    group.add_argument("--init", type=Path, metavar="PICTURE", help="img2img: start from this picture")
    group.add_argument("--inpaint-mask", type=Path, metavar="PICTURE", help="paint anew where this is white and opaque")
    group.add_argument("--strength", type=float, default=0.6, help="img2img: how much is made anew")


def _add_identity(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    group.add_argument("--photo", action="append", default=[], metavar="PICTURE", help="may be given several times")
    group.add_argument("--adapter", metavar="NAME|FILE", help="adapter checkpoint; default: the only one there is")
    group.add_argument("--weight", metavar="W", help="strength of the identity (0.8)")
    group.add_argument("--box", metavar="X0,Y0,X1,Y1", help="act in this box, in fractions of the picture")
    group.add_argument("--region-mask", metavar="PICTURE", help="act where this picture is white and opaque")
    group.add_argument("--settings", type=Path, metavar="FILE", help="settings as JSON; flags go before")
    group.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="any field; see 'dp-adapter settings --table'"
    )
    group.add_argument("--compare", action="store_true", help="also make each picture without the adapter")


def _add_machine(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    group.add_argument("--device", default="auto")
    group.add_argument("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"))


def run(args: argparse.Namespace) -> int:
    """Makes the pictures.

    Raises:
        DPAdapterError: in words, before sampling.
    """
    settings = settings_from(args)
    args.out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    from dp_adapter.cli.write_pictures import write
    from dp_adapter.generation import generate
    from dp_adapter.hosts.pipelines import load_pipeline
    from dp_adapter.hosts.pipelines.native_size import of_pipeline
    from dp_adapter.session import Session

    pipeline = load_pipeline.load(args.base, args.device, args.dtype)
    job = job_from(args, of_pipeline(pipeline))
    session = Session([models_root(args.models_dir)], paths_allowed=True, device=str(pipeline.device))
    arms = {"": settings, "_base": settings.replace(enabled=False)} if args.compare else {"": settings}
    for suffix, request in arms.items():
        started = time.perf_counter()
        bar = make_bar("without the adapter" if suffix else "sampling")
        generation = generate(session, pipeline, request, job, bar, on_explanation=_show_explanation)
        seconds = time.perf_counter() - started
        mode = session.modes.of(request.mode)
        paths = write(args.out, args.base.resolve().name, request, mode, job, generation, seconds, suffix)
        for path, result in zip(paths, generation.kept, strict=True):
            print(f"-> {path}")
            if result.words:
                print(f"   {result.words}")
            elif result.likeness is not None:
                print(f"   likeness {result.likeness:.2f}" if result.likeness else "   no face was found in it")
        if generation.late:
            print("\n".join(generation.late))
        for result in generation.results:
            if result.left_out:
                print(f"Left out, being below the least likeness: seed {result.seed}, {result.words}")
    return 0


def _show_explanation(explanation: Explanation) -> None:
    print("\n".join(explanation.lines()), flush=True)


def settings_from(args: argparse.Namespace) -> Settings:
    """The request: the settings file, then the flags, then ``--set``.

    Raises:
        SettingsError: names the field.
    """
    from dp_adapter.settings import field_at

    changes: dict[str, Any] = {}
    if args.photo:
        changes["references"] = [{"image": photo} for photo in args.photo]
    if args.adapter:
        changes["model"] = args.adapter
    if args.weight is not None:
        changes["weight"] = field_at("weight").kind.parse(args.weight)
    if args.box and args.region_mask:
        raise SettingsError("regions", "--box and --region-mask were both given", "Give one of them.")
    if args.box:
        changes["regions"] = [{"kind": "box", "box": _parse_box(args.box)}]
    if args.region_mask:
        changes["regions"] = [{"kind": "mask", "mask": args.region_mask}]
    return request_from(args.settings, changes, args.set)


def _parse_box(text: str) -> dict[str, float]:
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise SettingsError("regions[0].box", f"'{text}' is not X0,Y0,X1,Y1", "Write --box 0.3,0.1,0.7,0.5.") from None
    return {"x0": x0, "y0": y0, "x1": x1, "y1": y1}


def job_from(args: argparse.Namespace, native: int) -> DiffusersJob:
    """The picture to be made. Its size defaults to the model's, with an init picture in that picture's proportions.

    Args:
        native: side in px of what the model makes.
    """
    import numpy as np
    from PIL import Image, ImageOps

    from dp_adapter.hosts.pipelines.diffusers_job import Pixels
    from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob
    from dp_adapter.identity.pictures.picture_files import load_mask, load_picture

    init = None if args.init is None else load_picture(args.init)
    mask = None if args.inpaint_mask is None else load_mask(args.inpaint_mask)
    scale = 1.0 if init is None else min(1.0, native / (init.shape[0] * init.shape[1]) ** 0.5)
    height, width = (native, native) if init is None else (round(side * scale / 8) * 8 for side in init.shape[:2])
    size = (width if args.width is None else args.width, height if args.height is None else args.height)

    def fitted(picture: Pixels) -> Pixels:
        return np.asarray(ImageOps.fit(Image.fromarray(picture), size), np.uint8)

    job = DiffusersJob(
        prompt=args.prompt,
        negative_prompt=args.negative,
        width=size[0],
        height=size[1],
        steps=args.steps,
        guidance=args.guidance,
        seed=args.seed,
        batch=args.batch,
        sampler=args.sampler,
        strength=args.strength,
    )
    # the size is known to be usable now
    return replace(
        job,
        init=None if init is None else fitted(init),
        mask=None if mask is None else fitted(mask),
    )


def make_bar(words: str) -> Callable[..., None]:
    """A progress bar on the terminal's error stream, so that output stays clean; it begins with the first step."""
    from tqdm import tqdm

    bar: Any = None

    def progress(done: int, total: int, losses: Mapping[str, float] | None = None) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc=words, total=total, file=sys.stderr, unit="step", leave=False, disable=None)
        if losses:
            bar.set_postfix({key: f"{value:.4f}" for key, value in losses.items()}, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return progress
