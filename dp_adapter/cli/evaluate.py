"""``dp-adapter evaluate``: base model, plain add, DP-Adapter and its ablations on the same seeds, with a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_adapter.cli.models import models_root
from dp_adapter.cli.settings import assigned, read_settings
from dp_adapter.errors import SettingsError
from dp_adapter.settings.messages import separated
from dp_adapter.text_files import read_text

if TYPE_CHECKING:
    from dp_adapter.cli.evaluation_pictures import EvaluationPictures, Trial
    from dp_adapter.evaluation.picture_scores import PromptJudge, ReferenceVectors, Scorer
    from dp_adapter.evaluation.protocol import Arm, EvaluatedPerson, EvaluationPlan, Prompt
    from dp_adapter.evaluation.score_summary import Point, TableRow
    from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, Pipeline
    from dp_adapter.settings import Settings


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``evaluate`` to the command line."""
    parser = subparsers.add_parser("evaluate", help="measure an adapter by the protocol", description=__doc__)
    parser.set_defaults(run=run)
    add_models(parser)
    parser.add_argument("--people", type=Path, required=True, metavar="DIR", help="NAME_a.jpg, others NAME_b.jpg …")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N persons only")
    parser.add_argument("--prompts", default="auto", metavar="SET|FILE", help="fastcomposer, scenes, or one a line")
    parser.add_argument("--prompt-count", type=int, default=8, metavar="N", help="prompts a person (8)")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="pictures a prompt, made as one batch (2)")
    parser.add_argument("--arms", default="base,add,dp,no-tca,no-ffb,no-regions", metavar="NAMES")
    parser.add_argument("--sweep", default="", metavar="WEIGHTS", help="weights for the Pareto plot: 0.4,0.8,1.2")
    parser.add_argument("--sweep-people", type=int, default=4, metavar="N", help="persons of the sweep (4)")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), metavar="DIR")
    add_judging(parser)
    add_job(parser)


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
    group.add_argument("--prompt-judge", default="auto", choices=("auto", "scene", "clip"))
    group.add_argument("--clip-model", default="ViT-L-14", help="open_clip's name")
    group.add_argument("--clip-weights", default="openai", metavar="TAG|FILE")
    group.add_argument("--person-word", default="person", help="what {person} becomes in prompts")


def add_job(parser: argparse.ArgumentParser) -> None:
    """What both commands ask of the pictures."""
    group = parser.add_argument_group("pictures")
    group.add_argument("--size", type=int, help="side in px; default: 128 for the small base, 512, SDXL 1024")
    group.add_argument("--steps", type=int, default=25)
    group.add_argument("--guidance", type=float, default=7.0, metavar="CFG")
    group.add_argument("--sampler", default="dpmpp_2m_karras")
    group.add_argument("--negative", default="", metavar="PROMPT")
    group.add_argument("--seed", type=int, default=0, help="the first of all seeds")


def run(args: argparse.Namespace) -> int:
    """Makes, judges and reports.

    Raises:
        DPAdapterError: in words, before the work.
    """
    from dp_adapter.evaluation import evaluation_report
    from dp_adapter.evaluation.protocol import people_in

    evaluation_report.require()
    people = people_in(args.people, args.limit)
    weights = _weights(args.sweep)
    studio, pipeline, settings = opened(args)
    job = job_of(args, pipeline)
    scorer, references, people, notes = _judges(args, studio, pipeline, people)
    plan, told = _plan(args, studio, pipeline, people, settings)
    rows = list(_rows(plan, studio, settings, job, scorer, references))
    sweep = _sweep(args, weights, plan, studio, settings, job, scorer, references)
    config = config_of(args, studio, scorer, job, settings)
    page = evaluation_report.write(
        args.out, evaluation_report.Results(plan, rows, sweep, config, _scale(references), (*notes, *told))
    )
    _print(rows, plan)
    print(f"-> {page} ({studio.made} pictures made, {len(rows)} judged)")
    return 0


def opened(args: argparse.Namespace) -> tuple[EvaluationPictures, Pipeline, Settings]:
    """The base, the adapter and the settings that all arms share."""
    from dp_adapter.cli.evaluation_pictures import EvaluationPictures
    from dp_adapter.hosts.pipelines import load_pipeline
    from dp_adapter.session import Session
    from dp_adapter.settings import Settings

    settings = (read_settings(args.settings) if args.settings else Settings()).with_fields(assigned(args.set))
    if settings.references:
        raise SettingsError("references", "photos come from --people or --photo", "Take them out of the settings.")
    root = models_root(args.models_dir)
    session = Session([root], paths_allowed=True)
    adapter = session.library.resolve(args.adapter)
    session.checkpoint(str(adapter))  # what is wrong with it is said before the base is loaded
    pipeline = load_pipeline.load(args.base, args.device, args.dtype)
    args.out.mkdir(parents=True, exist_ok=True)
    return EvaluationPictures(session, pipeline, args.base, adapter, args.out), pipeline, settings


def is_small(pipeline: Pipeline) -> bool:
    """Whether a base is one of the narrow ones of this project, whose pictures can be measured."""
    return int(pipeline.unet.config.cross_attention_dim) < 768


def job_of(args: argparse.Namespace, pipeline: Pipeline) -> DiffusersJob:
    """One batch of pictures, without prompt and seed."""
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


def scorer_of(args: argparse.Namespace, studio: EvaluationPictures, pipeline: Pipeline) -> Scorer:
    """The judges, or what is missing in words."""
    from dp_adapter.evaluation.clip_judge import OpenClip
    from dp_adapter.evaluation.identity_judges import judge
    from dp_adapter.evaluation.picture_scores import MeasuredScene, Scorer

    found = judge(args.judge, studio.checkpoint.encoders, [models_root(args.models_dir)])
    measured = args.prompt_judge == "scene" or (args.prompt_judge == "auto" and is_small(pipeline))
    prompts: PromptJudge = (
        MeasuredScene() if measured else OpenClip(args.clip_model, args.clip_weights, str(pipeline.device))
    )
    return Scorer(found, prompts)


def _judges(
    args: argparse.Namespace, studio: EvaluationPictures, pipeline: Pipeline, people: Sequence[EvaluatedPerson]
) -> tuple[Scorer, list[ReferenceVectors], tuple[EvaluatedPerson, ...], list[str]]:
    """The judges, and every person as they see them; who cannot be seen is left out with a note."""
    from dp_adapter.errors import FaceError
    from dp_adapter.identity.pictures.picture_files import load_picture

    scorer = scorer_of(args, studio, pipeline)
    references: list[ReferenceVectors] = []
    kept: list[EvaluatedPerson] = []
    notes: list[str] = []
    for person in people:
        try:
            others = [load_picture(path) for path in person.others]
            references.append(scorer.reference(person.name, load_picture(person.photo), others))
            kept.append(person)
        except FaceError as error:
            notes.append(f"{person.name} was left out: {error.problem}.")
    if not kept:
        raise FaceError("The judge finds no face in any of the photos", "Give other photos.")
    return scorer, references, tuple(kept), notes


def _plan(
    args: argparse.Namespace,
    studio: EvaluationPictures,
    pipeline: Pipeline,
    people: tuple[EvaluatedPerson, ...],
    settings: Settings,
) -> tuple[EvaluationPlan, list[str]]:
    from dp_adapter.evaluation.protocol import EvaluationPlan, arms

    chosen = arms([name for name in separated(args.arms) if name])
    notes: list[str] = []
    if "text" not in studio.trained and settings.text_emphasis == 0 and not settings.strict_text_region:
        chosen = tuple(arm for arm in chosen if arm.name != "no-tca")
        notes.append("The adapter has no trained TCA, so that DP-Adapter is already without it.")
    if "blending" not in studio.trained:
        notes.append("The adapter has no trained FFB: its gate is the region mask to a power, without FFB the mask.")
    if args.seeds < 1 or args.prompt_count < 1:
        raise SettingsError("seeds", "there is nothing to make", "Give --seeds and --prompt-count of 1 or more.")
    prompts = tuple(tuple(_prompts(args, pipeline, person, number)) for number, person in enumerate(people))
    return EvaluationPlan(people, prompts, args.seeds, args.seed, chosen), notes


def _prompts(args: argparse.Namespace, pipeline: Pipeline, person: EvaluatedPerson, number: int) -> list[Prompt]:
    """One person's prompts: the set's, the scene grammar's with the person's own face, or a file's."""
    from dp_adapter.evaluation import fastcomposer_prompts
    from dp_adapter.evaluation.protocol import filled
    from dp_adapter.identity.pictures.picture_files import load_picture
    from dp_adapter.small_base import caption_grammar
    from dp_adapter.small_base.caption_check import SceneCheck

    name = args.prompts if args.prompts != "auto" else "scenes" if is_small(pipeline) else "fastcomposer"
    if name == "scenes":
        facts = SceneCheck().measure(load_picture(person.photo)).facts
        texts = caption_grammar.drawn(args.seed + number, facts, args.prompt_count)
    elif name == "fastcomposer":
        texts = fastcomposer_prompts.templates()[: args.prompt_count]
    else:
        try:
            lines = read_text(Path(name)).splitlines()
        except (OSError, ValueError) as error:
            hint = "Use fastcomposer, scenes, or a text file with a prompt a line."
            raise SettingsError("prompts", f"{name} cannot be read ({error})", hint) from error
        texts = [line.strip() for line in lines if line.strip()][: args.prompt_count]
    if args.prompt_judge == "scene" or (args.prompt_judge == "auto" and is_small(pipeline)):
        for text in texts:
            caption_grammar.statements(text)
    return [filled(text, args.person_word) for text in texts]


def _rows(
    plan: EvaluationPlan,
    studio: EvaluationPictures,
    settings: Settings,
    job: DiffusersJob,
    scorer: Scorer,
    references: Sequence[ReferenceVectors],
) -> Iterator[TableRow]:
    """Makes and judges every picture, with a bar; the arms of one prompt in a row, base model first."""
    from tqdm import tqdm

    bar: Any = tqdm(total=plan.pictures, file=sys.stderr, unit="picture", disable=None)
    for number, person in enumerate(plan.people):
        for place, prompt in enumerate(plan.prompts[number]):
            made: dict[str, list[Trial]] = {}
            for arm in plan.arms:
                bar.set_description(f"{person.name}, {arm.label}")
                made[arm.name] = studio.pictures(*_asked(plan, studio, settings, job, number, place, arm))
                bar.update(plan.seeds)
            yield from _judged(plan, studio, scorer, references[number], (number, place, prompt), made)
    bar.close()


def _asked(
    plan: EvaluationPlan,
    studio: EvaluationPictures,
    settings: Settings,
    job: DiffusersJob,
    number: int,
    place: int,
    arm: Arm,
) -> tuple[Settings, DiffusersJob]:
    request = arm.request(settings, studio.model(arm.weights), plan.people[number].photo)
    return request, replace(job, prompt=plan.prompts[number][place].text, seed=plan.seed(number, place))


def _judged(
    plan: EvaluationPlan,
    studio: EvaluationPictures,
    scorer: Scorer,
    reference: ReferenceVectors,
    which: tuple[int, int, Prompt],
    made: dict[str, list[Trial]],
) -> Iterator[TableRow]:
    from dp_adapter.evaluation.protocol import BASE
    from dp_adapter.evaluation.score_summary import TableRow

    number, place, prompt = which
    for index, base in enumerate(made[BASE]):
        region = scorer.region(base.picture)
        for arm, trials in made.items():
            one = trials[index]
            scores = scorer.score(one.picture, reference, prompt.judged, base.picture, region, one.seconds)
            seed, file = plan.seed(number, place) + index, one.file.relative_to(studio.out).as_posix()
            name = plan.people[number].name
            yield TableRow(name, place, prompt.text, seed, arm, file, scores.values, scores.statements)


def _weights(text: str) -> list[float]:
    try:
        return [float(part) for part in separated(text) if part]
    except ValueError:
        raise SettingsError("sweep", f"'{text}' is no list of weights", "Write --sweep 0.4,0.8,1.2.") from None


def _sweep(
    args: argparse.Namespace,
    weights: Sequence[float],
    plan: EvaluationPlan,
    studio: EvaluationPictures,
    settings: Settings,
    job: DiffusersJob,
    scorer: Scorer,
    references: Sequence[ReferenceVectors],
) -> list[Point]:
    """Plain add and DP-Adapter at several weights, on the first persons."""
    from dp_adapter.evaluation.protocol import ADD, BASE, DP
    from dp_adapter.evaluation.score_summary import Point, table

    count = min(args.sweep_people, len(plan.people))
    chosen = tuple(arm for arm in plan.arms if arm.name in (BASE, ADD, DP))
    few = replace(plan, people=plan.people[:count], prompts=plan.prompts[:count], arms=chosen)
    points: list[Point] = []
    for weight in weights:
        rows = list(_rows(few, studio, settings.with_field("weight", weight), job, scorer, references))
        means = table(rows)
        points += [
            Point(arm, f"{weight:g}", means[arm]["identity"].mean, means[arm]["prompt"].mean) for arm in (ADD, DP)
        ]
    return sorted(points, key=lambda point: (point.arm, float(point.label)))


def _scale(references: Sequence[ReferenceVectors]) -> dict[str, float | None]:
    """What the judge gives for two photos of one person, and for photos of two persons."""
    from dp_adapter.evaluation.picture_metrics import cosine

    same = [cosine(one.photo, other) for one in references for other in one.others]
    different = [
        cosine(one.photo, other.photo) for number, one in enumerate(references) for other in references[:number]
    ]
    means = [sum(values) / len(values) if values else None for values in (same, different)]
    return {"same": means[0], "different": means[1]}


def config_of(
    args: argparse.Namespace, studio: EvaluationPictures, scorer: Scorer, job: DiffusersJob, settings: Settings
) -> dict[str, Any]:
    """What was asked for, with versions and digests: enough to do it again. No paths of the machine."""
    from importlib import metadata

    from dp_adapter import __version__
    from dp_adapter.cli.write_pictures import shared_settings

    versions = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers", "numpy", "onnxruntime")}
    names = ("width", "height", "steps", "guidance", "sampler", "negative_prompt", "batch")
    return {
        "dp_adapter": __version__,
        "versions": versions,
        "base": {"name": args.base.resolve().name, "digest": studio.base},
        "adapter": {"name": studio.adapter.name, "sha256": studio.adapter_digest, "trained": sorted(studio.trained)},
        "judge": {"title": scorer.judge.title, "licence": scorer.judge.licence},
        "prompts": {"title": scorer.prompts.title, "set": getattr(args, "prompts", "scenes")},
        "job": {name: getattr(job, name) for name in names},
        "first_seed": args.seed,
        "settings": shared_settings(settings),
        "device": args.device,
    }


def _print(rows: Sequence[TableRow], plan: EvaluationPlan) -> None:
    """The table in short."""
    from dp_adapter.evaluation.evaluation_report import cell
    from dp_adapter.evaluation.picture_scores import METRICS
    from dp_adapter.evaluation.score_summary import claims, table

    means = table(rows)
    shown = [metric for metric in METRICS if any(metric.name in found for found in means.values())]
    width = max(len(arm.label) for arm in plan.arms)
    for metric in shown:
        print(metric.label)
        for arm in plan.arms:
            print(f"  {arm.label:{width}}  {cell(means[arm.name].get(metric.name), metric)}")
    for claim in claims(rows):
        state = {True: "holds", False: "does not hold", None: "undecided"}[claim.holds]
        print(f"{claim.words}: {state}, {cell(claim.difference, None, True)}")
