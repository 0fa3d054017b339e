"""``dp-adapter evaluate``: base model, plain add, DP-Adapter and its ablations on the same seeds, with a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_adapter.cli import evaluation_setup
from dp_adapter.errors import SettingsError
from dp_adapter.settings.messages import split_list
from dp_adapter.text_files import read_text

if TYPE_CHECKING:
    from dp_adapter.cli.evaluation_pictures import EvaluationPictures, Trial
    from dp_adapter.evaluation.picture_scores import ReferenceVectors, Scorer
    from dp_adapter.evaluation.protocol import EvaluatedPerson, EvaluationPlan, Prompt
    from dp_adapter.evaluation.score_summary import Point, TableRow
    from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, Pipeline
    from dp_adapter.settings import Settings


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``evaluate`` to the command line."""
    parser = subparsers.add_parser("evaluate", help="measure an adapter by the protocol", description=__doc__)
    parser.set_defaults(run=run)
    evaluation_setup.add_models(parser)
    parser.add_argument("--people", type=Path, required=True, metavar="DIR", help="NAME_a.jpg, others NAME_b.jpg …")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N persons only")
    parser.add_argument(
        "--prompts", default="auto", metavar="SET|FILE", help="scenes, conflict, fastcomposer, or one a line"
    )
    parser.add_argument("--prompt-count", type=int, default=8, metavar="N", help="prompts a person (8)")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="pictures a prompt, made as one batch (2)")
    parser.add_argument("--arms", default="base,add,dp,no-tca,no-ffb,no-regions", metavar="NAMES")
    parser.add_argument("--sweep", default="", metavar="WEIGHTS", help="weights for the Pareto plot: 0.4,0.8,1.2")
    parser.add_argument("--sweep-people", type=int, default=4, metavar="N", help="persons of the sweep (4)")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), metavar="DIR")
    evaluation_setup.add_judging(parser)
    evaluation_setup.add_job(parser)


def run(args: argparse.Namespace) -> int:
    """Makes and judges all pictures and writes the report; returns 0.

    Raises:
        DPAdapterError: before the work: an option, a photo, a model or a judge is wrong or missing.
    """
    from dp_adapter.evaluation import evaluation_report
    from dp_adapter.evaluation.protocol import find_people

    evaluation_report.require()
    people = find_people(args.people, args.limit)
    weights = _parse_weights(args.sweep)
    pictures, pipeline, settings = evaluation_setup.open_models(args)
    job = evaluation_setup.make_job(args, pipeline)
    scorer, references, people, notes = _read_references(args, pictures, pipeline, people)
    plan, more_notes = _make_plan(args, pictures, pipeline, people, settings)
    trials = _Trials(pictures, settings, job, scorer, references)
    rows = list(trials.make_and_judge(plan))
    results = evaluation_report.EvaluationResults(
        plan=plan,
        rows=rows,
        sweep=trials.sweep(weights, plan, args.sweep_people),
        config=evaluation_setup.describe_run(args, pictures, scorer, job, settings),
        scale=_measure_judge_scale(references),
        notes=(*notes, *more_notes),
    )
    page = evaluation_report.write(args.out, results)
    _print_table(rows, plan)
    print(f"-> {page} ({pictures.sampled} pictures made, {len(rows)} judged)")
    return 0


def _read_references(
    args: argparse.Namespace, pictures: EvaluationPictures, pipeline: Pipeline, people: Sequence[EvaluatedPerson]
) -> tuple[Scorer, list[ReferenceVectors], tuple[EvaluatedPerson, ...], list[str]]:
    """The judges, and the reference vectors of every person; people without a face are left out with a note."""
    from dp_adapter.errors import FaceError
    from dp_adapter.identity.pictures.picture_files import load_picture

    scorer = evaluation_setup.make_scorer(args, pictures, pipeline)
    references: list[ReferenceVectors] = []
    kept: list[EvaluatedPerson] = []
    notes: list[str] = []
    for person in people:
        try:
            others = [load_picture(path) for path in person.others]
            references.append(scorer.read_reference(person.name, load_picture(person.photo), others))
            kept.append(person)
        except FaceError as error:
            notes.append(f"{person.name} was left out: {error.problem}.")
    if not kept:
        raise FaceError("The judge finds no face in any of the photos", "Give other photos.")
    return scorer, references, tuple(kept), notes


def _make_plan(
    args: argparse.Namespace,
    pictures: EvaluationPictures,
    pipeline: Pipeline,
    people: tuple[EvaluatedPerson, ...],
    settings: Settings,
) -> tuple[EvaluationPlan, list[str]]:
    from dp_adapter.evaluation.protocol import EvaluationPlan, choose_arms

    chosen = choose_arms([name for name in split_list(args.arms) if name])
    notes: list[str] = []
    guidance = pictures.checkpoint.guidance if settings.identity_guidance is None else settings.identity_guidance
    text_acts = settings.text_emphasis or settings.strict_text_region or guidance
    if "text" not in pictures.trained_parts and not text_acts:
        chosen = tuple(arm for arm in chosen if arm.name != "no-tca")
        notes.append("The adapter has no trained TCA, so that DP-Adapter is already without it.")
    if not pictures.trained_parts & {"blending", "gate"}:
        notes.append("The adapter has no trained FFB: its gate is the region mask to a power, without FFB the mask.")
    if args.seeds < 1 or args.prompt_count < 1:
        raise SettingsError("seeds", "there is nothing to make", "Give --seeds and --prompt-count of 1 or more.")
    prompts = tuple(tuple(_make_prompts(args, pipeline, person, number)) for number, person in enumerate(people))
    return EvaluationPlan(people, prompts, args.seeds, args.seed, chosen), notes


def _make_prompts(args: argparse.Namespace, pipeline: Pipeline, person: EvaluatedPerson, number: int) -> list[Prompt]:
    """One person's prompts: of a set, or a file's."""
    name = (
        args.prompts if args.prompts != "auto" else "scenes" if evaluation_setup.is_small(pipeline) else "fastcomposer"
    )
    if name in evaluation_setup.PROMPT_SETS:
        texts = evaluation_setup.own_texts(name, person.photo, args.seed + number, args.prompt_count)
    else:
        try:
            lines = read_text(Path(name)).splitlines()
        except (OSError, ValueError) as error:
            hint = f"Use {', '.join(evaluation_setup.PROMPT_SETS)}, or a text file with a prompt a line."
            raise SettingsError("prompts", f"{name} cannot be read ({error})", hint) from error
        texts = [line.strip() for line in lines if line.strip()][: args.prompt_count]
    return evaluation_setup.fill_prompts(args, pipeline, texts)


@dataclass(frozen=True, eq=False)
class _Trials:
    """Makes pictures and judges them against each person's ``references``; ``settings`` are what all arms share."""

    pictures: EvaluationPictures
    settings: Settings
    job: DiffusersJob
    scorer: Scorer
    references: Sequence[ReferenceVectors]

    def make_and_judge(self, plan: EvaluationPlan) -> Iterator[TableRow]:
        """Makes and judges every picture, with a bar; the arms of one prompt in a row, base model first."""
        from tqdm import tqdm

        bar: Any = tqdm(total=plan.pictures, file=sys.stderr, unit="picture", disable=None)
        for number, person in enumerate(plan.people):
            for prompt_number, prompt in enumerate(plan.prompts[number]):
                job = replace(self.job, prompt=prompt.text, seed=plan.seed(number, prompt_number))
                made: dict[str, list[Trial]] = {}
                for arm in plan.arms:
                    bar.set_description(f"{person.name}, {arm.label}")
                    model = self.pictures.model_file(arm.weights)
                    made[arm.name] = self.pictures.make(arm.make_request(self.settings, model, person.photo), job)
                    bar.update(plan.seeds)
                yield from self._judge(plan, number, prompt_number, made)
        bar.close()

    def _judge(
        self, plan: EvaluationPlan, number: int, prompt_number: int, made: dict[str, list[Trial]]
    ) -> Iterator[TableRow]:
        """Judges the pictures of all arms for one of a person's prompts."""
        from dp_adapter.evaluation.protocol import BASE
        from dp_adapter.evaluation.score_summary import TableRow

        scorer, name, prompt = self.scorer, plan.people[number].name, plan.prompts[number][prompt_number]
        reference = self.references[number]
        for index, base in enumerate(made[BASE]):
            region, seed = scorer.mask_base_face(base.picture), plan.seed(number, prompt_number) + index
            for arm, trials in made.items():
                one = trials[index]
                scores = scorer.score(one.picture, reference, prompt.judged, base.picture, region, one.seconds)
                file = one.file.relative_to(self.pictures.out).as_posix()
                yield TableRow(name, prompt_number, prompt.text, seed, arm, file, scores.values, scores.statements)

    def sweep(self, weights: Sequence[float], plan: EvaluationPlan, people: int) -> list[Point]:
        """Plain add and DP-Adapter at several weights, on the first persons."""
        from dp_adapter.evaluation.protocol import ADD, BASE, DP
        from dp_adapter.evaluation.score_summary import Point, summarise

        count = min(people, len(plan.people))
        chosen = tuple(arm for arm in plan.arms if arm.name in (BASE, ADD, DP))
        few = replace(plan, people=plan.people[:count], prompts=plan.prompts[:count], arms=chosen)
        points: list[Point] = []
        for weight in weights:
            means = summarise(
                list(replace(self, settings=self.settings.with_field("weight", weight)).make_and_judge(few))
            )
            points += [
                Point(arm, f"{weight:g}", means[arm]["identity"].mean, means[arm]["prompt"].mean) for arm in (ADD, DP)
            ]
        return sorted(points, key=lambda point: (point.arm, float(point.label)))


def _parse_weights(text: str) -> list[float]:
    try:
        return [float(part) for part in split_list(text) if part]
    except ValueError:
        raise SettingsError("sweep", f"'{text}' is no list of weights", "Write --sweep 0.4,0.8,1.2.") from None


def _measure_judge_scale(references: Sequence[ReferenceVectors]) -> dict[str, float | None]:
    """What the judge gives for two photos of one person, and for photos of two persons."""
    from dp_adapter.evaluation.picture_metrics import cosine

    same = [cosine(one.photo, other) for one in references for other in one.others]
    different = [
        cosine(one.photo, other.photo) for number, one in enumerate(references) for other in references[:number]
    ]
    means = [sum(values) / len(values) if values else None for values in (same, different)]
    return {"same": means[0], "different": means[1]}


def _print_table(rows: Sequence[TableRow], plan: EvaluationPlan) -> None:
    """Prints means and claims."""
    from dp_adapter.evaluation.evaluation_report import format_cell
    from dp_adapter.evaluation.picture_scores import METRICS
    from dp_adapter.evaluation.score_summary import judge_claims, summarise

    means = summarise(rows)
    shown = [metric for metric in METRICS if any(metric.name in found for found in means.values())]
    width = max(len(arm.label) for arm in plan.arms)
    for metric in shown:
        print(metric.label)
        for arm in plan.arms:
            print(f"  {arm.label:{width}}  {format_cell(means[arm.name].get(metric.name), metric)}")
    for claim in judge_claims(rows):
        state = {True: "holds", False: "does not hold", None: "undecided"}[claim.holds]
        print(f"{claim.words}: {state}, {format_cell(claim.difference, None, True)}")
