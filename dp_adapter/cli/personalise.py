"""``dp-adapter personalise``: learns one person from a photo or a few, for a base model; writes one small file."""

from __future__ import annotations

import argparse
import gc
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from dp_adapter.cli.generate import make_bar
from dp_adapter.cli.models import models_root
from dp_adapter.errors import HostError, WeightsError

if TYPE_CHECKING:
    from dp_adapter.training.personal.personal_objective import PersonalOptions
    from dp_adapter.training.personal.personalise import PersonalResult
    from dp_adapter.training.personal.varied_views import Subject

_SAME_PERSON = {"sface": 0.363, "arcface": 0.25}  # opencv_zoo's threshold for SFace; usual for ArcFace
_SMALL = 0.5  # a cut of fewer px than this share of the training size is worth a note


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``personalise`` to the command line."""
    parser = subparsers.add_parser("personalise", help="learn a person from a photo", description=__doc__)
    parser.set_defaults(run=run)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="one photo, or several of one person")
    parser.add_argument("--base", type=Path, required=True, help="diffusers folder or single file of SD1.5 or SDXL")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: NAME.safetensors in the models folder")
    parser.add_argument("--name", help="of the person, for people to read; default: the photo's name")
    parser.add_argument(
        "--export-embedding", type=Path, metavar="FILE", help="also write the words alone, as a textual inversion file"
    )
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help="folder with encoders and for the result")
    parser.add_argument("--replace", action="store_true", help="overwrite files of these names")
    parser.add_argument("--half", action="store_true", help="write half precision, a file of half the size")
    _add_training(parser.add_argument_group("training"), parser.add_argument_group("for experts"))
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto")
    machine.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    machine.add_argument("--checkpointing", action="store_true", help="less memory, about a third more time")


def _add_training(group: argparse._ArgumentGroup, experts: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    group.add_argument(
        "--encoder", default="sface", choices=("sface", "arcface"), help="of the face; arcface: insightface"
    )
    group.add_argument("--word", default="person", help="whose place the learned words take; one token")
    group.add_argument("--steps", type=int, default=320)
    group.add_argument("--batch", type=int, default=8)
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--size", type=int, help="side of the pictures in px; default: the base model's")
    group.add_argument("--template", action="append", metavar="TEXT", help="training prompt with {}; may be repeated")
    group.add_argument("--masked", action="store_true", help="learn from the head alone (Break-A-Scene's masked loss)")
    group.add_argument("--core", action="store_true", help="CoRe's context regularisation; slower")
    experts.add_argument("--words", type=int, default=2, help="how many learned words")
    experts.add_argument("--rate", type=float, default=0.012, help="learning rate of the words and of gamma")
    experts.add_argument("--network-rate", type=float, default=1e-3, help="of enhancer and adapter")
    experts.add_argument("--views", type=int, default=64, help="varied cuts that are made of the photos")
    experts.add_argument("--names", type=Path, metavar="FILE", help="well-known names for the anchor, one a line")
    experts.add_argument(
        "--released-behaviour",
        dest="released",
        action="store_true",
        help="as ID-EA's public code: the enhancer untrained, and only the words applied",
    )


def run(args: argparse.Namespace) -> int:
    """Trains and writes the file; returns 0, or 130 when interrupted: then the file has what was learned so far.

    Raises:
        DPAdapterError: before training: an option, a photo, the base or a network is wrong or missing.
    """
    name = args.name or args.photos[0].stem
    out = _prepare_output(args, name)
    import numpy as np
    import torch

    from dp_adapter.hosts.attach.diffusers import base_of
    from dp_adapter.hosts.pipelines import load_pipeline
    from dp_adapter.hosts.prompts import textual_inversion
    from dp_adapter.identity.encoders.encoder_pool import EncoderPool
    from dp_adapter.training.personal import learned_words, varied_views
    from dp_adapter.training.personal.personal_objective import encode_views
    from dp_adapter.training.personal.personalise import make_personal, personalise
    from dp_adapter.weights.families import personal
    from dp_adapter.weights.textual_inversion import save_embedding
    from dp_adapter.whole_files import write_whole

    options = _read_options(args)
    names = learned_words.read_names(args.names or learned_words.NAMES)
    encoders = EncoderPool([models_root(args.models_dir)])
    subjects = varied_views.read_subjects(args.photos, encoders, args.encoder)
    encoders.release()
    pipeline = load_pipeline.load(args.base, args.device, _choose_dtype(args.dtype, args.device))
    size = args.size or int(pipeline.unet.config.sample_size) * 8
    if size < 64 or size % 64:
        raise HostError(f"A side of {size} px cannot be used", "Give a multiple of 64.")
    for line in _find_doubts(subjects, args.encoder, size):
        print(line)
    views = varied_views.vary(subjects, size, max(args.views, len(subjects)), np.random.default_rng(options.seed))
    bank = encode_views(pipeline, views)
    pipeline.vae.to("cpu")  # it is not needed any more
    faceid = torch.as_tensor(varied_views.mean_embedding(subjects))
    base, widths = base_of(pipeline.unet), textual_inversion.widths(pipeline)
    network = make_personal(pipeline, faceid, names, options)
    print(f"Learning {name} from {len(subjects)} photo(s) at {size} px on {pipeline.device}, {options.steps} steps.")
    result = personalise(pipeline, network, bank, options, make_bar("learning"))
    del pipeline, bank
    _free_memory()
    if not result.curve:
        print("Interrupted before the first step; nothing was learned.", file=sys.stderr)
        return 130
    facts = _make_facts(args, result, size)
    word = "" if _is_person_word(options.word) else options.word
    network = network.half() if args.half else network
    with write_whole(out) as beside:
        personal.save(beside, network, base, name, facts, word)
    print(f"{_summarise(result)}\n-> {out} ({out.stat().st_size / 2**20:.1f} MB)")
    if args.export_embedding:
        assert network.learned is not None
        save_embedding(args.export_embedding, network.learned, widths)
        print(f"-> {args.export_embedding}: the words alone; write '{args.export_embedding.stem}' in prompts")
    return 130 if result.interrupted else 0


def _prepare_output(args: argparse.Namespace, name: str) -> Path:
    """Where the result goes; its folder is made.

    Raises:
        WeightsError: a file is there already, or its name is not one of safetensors.
    """
    out: Path = args.out or models_root(args.models_dir) / "dp_adapter" / f"{name}.safetensors"
    for path in filter(None, (out, args.export_embedding)):
        if path.suffix != ".safetensors":
            raise WeightsError(f"{path.name} is no name for a result", "Let it end in .safetensors.")
        if path.exists() and not args.replace:
            raise WeightsError(f"{path} is there already", "Choose another name, or add --replace.")
        path.parent.mkdir(parents=True, exist_ok=True)
    return out


def _read_options(args: argparse.Namespace) -> PersonalOptions:
    from dp_adapter.training.personal.learned_words import TEMPLATES
    from dp_adapter.training.personal.personal_objective import PersonalOptions

    asked = {field.name: getattr(args, field.name) for field in fields(PersonalOptions) if field.name in args}
    return PersonalOptions(**asked, templates=tuple(args.template or TEMPLATES))


def _choose_dtype(asked: str, device: str) -> str:
    """Half precision's range is too small for gradients: bfloat16 where a GPU computes in it, else float32."""
    import torch

    if asked != "auto":
        return asked
    gpu = torch.cuda.is_available() and (device == "auto" or device.startswith("cuda"))
    return "bfloat16" if gpu and torch.cuda.is_bf16_supported() else "float32"


def _is_person_word(word: str) -> bool:
    from dp_adapter.hosts.prompts.person_words import PERSON

    return word in PERSON


def _find_doubts(subjects: list[Subject], encoder: str, size: int) -> list[str]:
    from dp_adapter.identity.faces.face_parsing import CROP
    from dp_adapter.training.personal.varied_views import lowest_likeness

    doubts: list[str] = []
    if (likeness := lowest_likeness(subjects)) < _SAME_PERSON[encoder]:
        doubts.append(f"Note: two of the photos look like different people (likeness {likeness:.2f}).")
    small = [one for one in subjects if CROP * one.face.size < _SMALL * size]
    if small:
        doubts.append(f"Note: in {len(small)} photo(s) the face is small, so it is enlarged more than twice.")
    return doubts


def _make_facts(args: argparse.Namespace, result: PersonalResult, size: int) -> dict[str, object]:
    names = ("words", "word", "batch", "rate", "network_rate", "seed", "views", "encoder", "masked", "core")
    return {
        "steps": len(result.curve),
        "photos": len(args.photos),
        "size": size,
        "base_name": args.base.resolve().name,
        "released_behaviour": args.released,
        "loss": {key: round(value, 6) for key, value in _mean(result.curve[-20:]).items()},
        "seconds": round(result.seconds, 1),
        **{key: getattr(args, key) for key in names},
    }


def _mean(curve: list[dict[str, float]]) -> dict[str, float]:
    return {key: sum(one[key] for one in curve) / len(curve) for key in curve[0]}


def _summarise(result: PersonalResult) -> str:
    losses = ", ".join(f"{key} {value:.4g}" for key, value in _mean(result.curve[-20:]).items())
    how = "Interrupted after" if result.interrupted else "Learned in"
    return f"{how} {len(result.curve)} steps, {result.seconds:.0f} s; mean of the last losses: {losses}."


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
