"""What ``evaluate`` and ``tune`` share: their options, and the models, judges and prompts that these name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_adapter.cli.models import models_root
from dp_adapter.cli.settings import request_from
from dp_adapter.errors import SettingsError

if TYPE_CHECKING:
    from dp_adapter.cli.evaluation_pictures import EvaluationPictures
    from dp_adapter.evaluation.picture_scores import PromptJudge, Scorer
    from dp_adapter.evaluation.protocol import Prompt
    from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, Pipeline
    from dp_adapter.settings import Settings


def add_models(parser: argparse.ArgumentParser) -> None:
    """What both commands ask of the models."""
    parser.add_argument("--base", type=Path, required=True, help="diffusers folder or single file of SD1.5 or SDXL")
    parser.add_argument("--adapter", required=True, metavar="NAME|FILE", help="adapter checkpoint")
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help="folder with adapters, encoders and judges")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="settings that all arms share, as JSON")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any field of them")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"))


def add_judging(parser: argparse.ArgumentParser) -> None:
    """What both commands ask of the judges."""
    group = parser.add_argument_group("judges")
    group.add_argument(
        "--judge", default="dlib", help="of identity: dlib, insightface or sface; see docs/evaluation.md"
    )
    group.add_argument("--person-word", default="person", help="what {person} becomes in prompts")
    experts = parser.add_argument_group("for experts")
    experts.add_argument("--prompt-judge", default="auto", choices=("auto", "scene", "clip"))
    experts.add_argument("--clip-model", default="ViT-L-14", help="open_clip's name")
    experts.add_argument("--clip-weights", default="openai", metavar="TAG|FILE")


def add_job(parser: argparse.ArgumentParser) -> None:
    """What both commands ask of the pictures."""
    group = parser.add_argument_group("pictures")
    group.add_argument("--size", type=int, help="side in px; default: 128 for the small base, 512, SDXL 1024")
    group.add_argument("--steps", type=int, default=25)
    group.add_argument("--guidance", type=float, default=7.0, metavar="CFG")
    group.add_argument("--sampler", default="dpmpp_2m_karras")
    group.add_argument("--negative", default="", metavar="PROMPT")
    group.add_argument("--seed", type=int, default=0, help="the first of all seeds")


def open_models(args: argparse.Namespace) -> tuple[EvaluationPictures, Pipeline, Settings]:
    """Opens the base and the adapter, and reads the settings that all arms share."""
    from dp_adapter.cli.evaluation_pictures import EvaluationPictures
    from dp_adapter.hosts.pipelines import load_pipeline
    from dp_adapter.session import Session

    settings = request_from(args.settings, {}, args.set)
    if settings.references:
        raise SettingsError("references", "photos come from --people or --photo", "Take them out of the settings.")
    root = models_root(args.models_dir)
    session = Session([root], paths_allowed=True)
    adapter = session.library.resolve(args.adapter)
    session.checkpoint(str(adapter))  # a wrong file is reported before the base is loaded
    pipeline = load_pipeline.load(args.base, args.device, args.dtype)
    args.out.mkdir(parents=True, exist_ok=True)
    return EvaluationPictures(session, pipeline, args.base, adapter, args.out), pipeline, settings


def is_small(pipeline: Pipeline) -> bool:
    """Whether a base is one of the narrow ones of this project, whose pictures can be measured."""
    return int(pipeline.unet.config.cross_attention_dim) < 768


def make_job(args: argparse.Namespace, pipeline: Pipeline) -> DiffusersJob:
    """The job of one batch of pictures, yet without prompt and seed."""
    from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob

    native = 128 if is_small(pipeline) else 1024 if hasattr(pipeline, "text_encoder_2") else 512
    side = args.size or native
    return DiffusersJob(
        "",
        args.negative,
        width=side,
        height=side,
        steps=args.steps,
        guidance=args.guidance,
        seed=args.seed,
        batch=getattr(args, "seeds", 1),
        sampler=args.sampler,
    )


def make_scorer(args: argparse.Namespace, pictures: EvaluationPictures, pipeline: Pipeline) -> Scorer:
    """Opens the judges of identity and of prompts."""
    from dp_adapter.evaluation.clip_judge import ClipJudge
    from dp_adapter.evaluation.identity_judges import open_judge
    from dp_adapter.evaluation.picture_scores import SceneJudge, Scorer

    found = open_judge(args.judge, pictures.checkpoint.encoders, [models_root(args.models_dir)])
    prompts: PromptJudge = (
        SceneJudge()
        if measures_scenes(args, pipeline)
        else ClipJudge(args.clip_model, args.clip_weights, str(pipeline.device))
    )
    return Scorer(found, prompts)


PROMPT_SETS = ("scenes", "conflict", "fastcomposer")
"""Captions of the small base's grammar that agree with the photo's face; that contradict it; FastComposer's prompts."""


def own_texts(name: str, photo: Path, seed: int, count: int) -> list[str]:
    """The first of a set of prompts, for the person of a photo."""
    from dp_adapter.evaluation import fastcomposer_prompts
    from dp_adapter.identity.pictures.picture_files import load_picture
    from dp_adapter.small_base import caption_grammar
    from dp_adapter.small_base.caption_check import CaptionCheck

    if name != "fastcomposer":
        facts = CaptionCheck().measure(load_picture(photo)).facts
        return caption_grammar.random_captions(seed, facts, count, name == "conflict")
    return fastcomposer_prompts.prompt_templates()[:count]


def fill_prompts(args: argparse.Namespace, pipeline: Pipeline, texts: Sequence[str]) -> list[Prompt]:
    """Writes the person's word into texts. Raises SettingsError for one that the scene judge cannot measure."""
    from dp_adapter.evaluation.protocol import fill_template
    from dp_adapter.small_base import caption_grammar

    if measures_scenes(args, pipeline):
        for text in texts:
            caption_grammar.parse_caption(text)
    return [fill_template(text, args.person_word) for text in texts]


def measures_scenes(args: argparse.Namespace, pipeline: Pipeline) -> bool:
    return args.prompt_judge == "scene" or (args.prompt_judge == "auto" and is_small(pipeline))


def describe_run(
    args: argparse.Namespace, pictures: EvaluationPictures, scorer: Scorer, job: DiffusersJob, settings: Settings
) -> dict[str, Any]:
    """Settings, versions and digests: enough to repeat the run, without paths of the machine."""
    from importlib import metadata

    from dp_adapter import __version__
    from dp_adapter.cli.write_pictures import shareable_settings

    versions = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers", "numpy", "onnxruntime")}
    names = ("width", "height", "steps", "guidance", "sampler", "negative_prompt", "batch")
    return {
        "dp_adapter": __version__,
        "versions": versions,
        "base": {"name": args.base.resolve().name, "digest": pictures.base},
        "adapter": {
            "name": pictures.adapter.name,
            "sha256": pictures.adapter_digest,
            "trained": sorted(pictures.trained_parts),
        },
        "judge": {"title": scorer.judge.title, "licence": scorer.judge.licence},
        "prompts": {"title": scorer.prompts.title, "set": getattr(args, "prompts", "scenes")},
        "job": {name: getattr(job, name) for name in names},
        "first_seed": args.seed,
        "settings": shareable_settings(settings),
        "device": args.device,
    }
