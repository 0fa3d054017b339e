"""``dp-adapter tune``: finds the settings on the Pareto front of identity and prompt for one checkpoint and photo."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_adapter.cli import evaluation_setup
from dp_adapter.errors import SettingsError

if TYPE_CHECKING:
    from dp_adapter.cli.evaluation_pictures import EvaluationPictures
    from dp_adapter.evaluation.picture_scores import ReferenceVectors, Scorer
    from dp_adapter.evaluation.protocol import Prompt
    from dp_adapter.evaluation.settings_search import TuningCandidate
    from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, Pipeline
    from dp_adapter.settings import Settings


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``tune`` to the command line."""
    parser = subparsers.add_parser("tune", help="find good weights for a photo", description=__doc__)
    parser.set_defaults(run=run)
    evaluation_setup.add_models(parser)
    parser.add_argument("--photo", type=Path, required=True, metavar="PICTURE")
    parser.add_argument("--prompt", action="append", default=[], metavar="PROMPT", help="may be given several times")
    parser.add_argument("--budget", type=int, default=64, metavar="N", help="pictures in all (64)")
    parser.add_argument("--out", type=Path, default=Path("out/tune"), metavar="DIR")
    evaluation_setup.add_judging(parser)
    evaluation_setup.add_job(parser)


def run(args: argparse.Namespace) -> int:
    """Tries settings in rounds, prints the front and writes settings.json, results.json and pareto.png; returns 0.

    Raises:
        DPAdapterError: before the work: an option, the photo, a model or a judge is wrong or missing.
    """
    from dp_adapter.evaluation import pareto_plot, settings_search
    from dp_adapter.evaluation.score_summary import Point, pareto_front
    from dp_adapter.identity.pictures.picture_files import load_picture

    pareto_plot.require()
    photo = load_picture(args.photo)
    pictures, pipeline, settings = evaluation_setup.open_models(args)
    job = replace(evaluation_setup.make_job(args, pipeline), batch=1)
    scorer = evaluation_setup.make_scorer(args, pictures, pipeline)
    reference = scorer.read_reference(args.photo.name, photo)
    prompts = _make_prompts(args, pipeline)
    shared = settings.with_fields({"references": [{"image": str(args.photo)}], "model": str(pictures.adapter)})
    candidates = settings_search.make_candidates(shared.weight, args.budget)

    try_candidate = _CandidateTrial(pictures, shared, job, scorer, reference, prompts, args.budget)
    found = settings_search.search(candidates, args.budget, try_candidate)
    points = {candidate.label: Point("tried", candidate.label, *candidate.means) for candidate in found}
    best = pareto_front(list(points.values()))
    kept = [candidate for candidate in found if points[candidate.label] in best]
    chosen = max(kept, key=lambda one: one.harmonic)
    pareto_plot.draw_pareto(args.out / "pareto.png", list(points.values()), {"tried": "settings tried"}, single=True)
    request = settings.with_fields(chosen.changes).to_dict(changed_only=True)
    (args.out / "settings.json").write_text(json.dumps(request, indent=2), encoding="utf-8")
    facts = {
        "config": evaluation_setup.describe_run(args, pictures, scorer, job, settings),
        "prompts": [prompt.text for prompt in prompts],
        "candidates": [_candidate_facts(candidate, candidate in kept) for candidate in found],
        "chosen": dict(chosen.changes),
    }
    (args.out / "results.json").write_text(json.dumps(facts, indent=2, allow_nan=False), encoding="utf-8")
    _print_front(args.out, kept, chosen, pictures.sampled)
    return 0


def _print_front(out: Path, kept: Sequence[TuningCandidate], chosen: TuningCandidate, made: int) -> None:
    print("On the Pareto front, from the most like the photo to the most like the prompt:")
    for candidate in sorted(kept, key=lambda one: -one.means[0]):
        identity, prompt = candidate.means
        mark = "  <- best harmonic mean" if candidate is chosen else ""
        print(f"  identity {identity:.3f}  prompt {prompt:.3f}  {candidate.label} ({candidate.count} pictures){mark}")
    flags = " ".join(f"--set {path}={value:g}" for path, value in chosen.changes.items())
    print(f"To use it: {flags}")
    print(f"or: --settings {out / 'settings.json'}")
    print(f"-> {out / 'pareto.png'} ({made} pictures made)")


def _candidate_facts(candidate: TuningCandidate, best: bool) -> dict[str, Any]:
    identity, prompt = candidate.means
    facts = {"settings": dict(candidate.changes), "identity": identity, "prompt": prompt}
    return {**facts, "pictures": candidate.count, "on_front": best}


def _make_prompts(args: argparse.Namespace, pipeline: Pipeline) -> list[Prompt]:
    texts: list[str] = args.prompt or evaluation_setup.own_texts(
        "scenes" if evaluation_setup.is_small(pipeline) else "fastcomposer", args.photo, args.seed, 8
    )
    prompts = evaluation_setup.fill_prompts(args, pipeline, texts)
    if args.budget < 4:
        raise SettingsError("budget", f"{args.budget} pictures compare nothing", "Give --budget of 4 or more.")
    return prompts


class _CandidateTrial:
    """Makes and judges one more picture of a candidate: prompt and seed are those of its round, the same for all."""

    def __init__(
        self,
        pictures: EvaluationPictures,
        settings: Settings,
        job: DiffusersJob,
        scorer: Scorer,
        reference: ReferenceVectors,
        prompts: Sequence[Prompt],
        budget: int,
    ) -> None:
        from tqdm import tqdm

        self._pictures, self._settings, self._job = pictures, settings, job
        self._scorer, self._reference, self._prompts = scorer, reference, prompts
        self._bar: Any = tqdm(total=budget, file=sys.stderr, unit="picture", disable=None)

    def __call__(self, changes: Mapping[str, float], number: int) -> tuple[float, float]:
        """Identity and prompt consistency of the candidate's picture of this number."""
        prompt = self._prompts[number % len(self._prompts)]
        job = replace(self._job, prompt=prompt.text, seed=self._job.seed + number)
        (trial,) = self._pictures.make(self._settings.with_fields(changes), job)
        self._bar.update(1)
        return self._scorer.score_both(trial.picture, self._reference, prompt.judged)
