"""``dp-adapter tune``: finds the settings on the Pareto front of identity and prompt for one checkpoint and photo."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_adapter.cli import evaluate
from dp_adapter.errors import SettingsError

if TYPE_CHECKING:
    from dp_adapter.cli.evaluation_pictures import EvaluationPictures
    from dp_adapter.evaluation.picture_scores import ReferenceVectors, Scorer
    from dp_adapter.evaluation.settings_search import TuningCandidate
    from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob
    from dp_adapter.settings import Settings


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``tune`` to the command line."""
    parser = subparsers.add_parser("tune", help="find good weights for a photo", description=__doc__)
    parser.set_defaults(run=run)
    evaluate.add_models(parser)
    parser.add_argument("--photo", type=Path, required=True, metavar="PICTURE")
    parser.add_argument("--prompt", action="append", default=[], metavar="PROMPT", help="may be given several times")
    parser.add_argument("--budget", type=int, default=64, metavar="N", help="pictures in all (64)")
    parser.add_argument("--out", type=Path, default=Path("out/tune"), metavar="DIR")
    evaluate.add_judging(parser)
    evaluate.add_job(parser)


def run(args: argparse.Namespace) -> int:
    """Tries settings in rounds, prints the front and writes settings.json, results.json and pareto.png.

    Raises:
        DPAdapterError: in words, before the work.
    """
    from dp_adapter.evaluation import pareto_plot, settings_search
    from dp_adapter.evaluation.score_summary import Point, front
    from dp_adapter.identity.pictures.picture_files import load_picture

    pareto_plot.require()
    photo = load_picture(args.photo)
    studio, pipeline, settings = evaluate.opened(args)
    job = replace(evaluate.job_of(args, pipeline), batch=1)
    scorer = evaluate.scorer_of(args, studio, pipeline)
    reference = scorer.reference(args.photo.name, photo)
    prompts = _prompts(args, evaluate.is_small(pipeline), photo)
    shared = settings.with_fields({"references": [{"image": str(args.photo)}], "model": str(studio.adapter)})
    candidates = settings_search.candidates(shared.weight, args.budget)

    trying = _Trying(studio, shared, job, scorer, reference, prompts, args.budget)
    found = settings_search.search(candidates, args.budget, trying)
    points = {candidate.label: Point("tried", candidate.label, *candidate.means) for candidate in found}
    best = front(list(points.values()))
    kept = [candidate for candidate in found if points[candidate.label] in best]
    chosen = max(kept, key=lambda one: one.harmonic)
    pareto_plot.pareto(args.out / "pareto.png", list(points.values()), {"tried": "settings tried"}, single=True)
    request = settings.with_fields(chosen.changes).to_dict(changed_only=True)
    (args.out / "settings.json").write_text(json.dumps(request, indent=2), encoding="utf-8")
    facts = {
        "config": evaluate.config_of(args, studio, scorer, job, settings),
        "prompts": [prompt for prompt, _ in prompts],
        "candidates": [_facts(candidate, candidate in kept) for candidate in found],
        "chosen": dict(chosen.changes),
    }
    (args.out / "results.json").write_text(json.dumps(facts, indent=2, allow_nan=False), encoding="utf-8")
    _tell(args.out, kept, chosen, studio.made)
    return 0


def _tell(out: Path, kept: Sequence[TuningCandidate], chosen: TuningCandidate, made: int) -> None:
    print("On the Pareto front, from the most like the photo to the most like the prompt:")
    for candidate in sorted(kept, key=lambda one: -one.means[0]):
        identity, prompt = candidate.means
        mark = "  <- best harmonic mean" if candidate is chosen else ""
        print(f"  identity {identity:.3f}  prompt {prompt:.3f}  {candidate.label} ({candidate.count} pictures){mark}")
    flags = " ".join(f"--set {path}={value:g}" for path, value in chosen.changes.items())
    print(f"To use it: {flags}")
    print(f"or: --settings {out / 'settings.json'}")
    print(f"-> {out / 'pareto.png'} ({made} pictures made)")


def _facts(candidate: TuningCandidate, best: bool) -> dict[str, Any]:
    identity, prompt = candidate.means
    facts = {"settings": dict(candidate.changes), "identity": identity, "prompt": prompt}
    return {**facts, "pictures": candidate.count, "on_front": best}


def _prompts(args: argparse.Namespace, small: bool, photo: Any) -> list[tuple[str, str]]:
    """Prompts as they are asked and judged."""
    from dp_adapter.evaluation import fastcomposer_prompts
    from dp_adapter.evaluation.protocol import filled
    from dp_adapter.small_base import caption_grammar
    from dp_adapter.small_base.caption_check import SceneCheck

    texts: list[str] = args.prompt
    if not texts:
        texts = (
            caption_grammar.drawn(args.seed, SceneCheck().measure(photo).facts, 8)
            if small
            else fastcomposer_prompts.templates()[:8]
        )
    if args.prompt_judge == "scene" or (args.prompt_judge == "auto" and small):
        for text in texts:
            caption_grammar.statements(text)
    if args.budget < 4:
        raise SettingsError("budget", f"{args.budget} pictures compare nothing", "Give --budget of 4 or more.")
    prompts = [filled(text, args.person_word) for text in texts]
    return [(prompt.text, prompt.judged) for prompt in prompts]


class _Trying:
    """Makes and judges one more picture of a candidate: prompt and seed are those of its round, the same for all."""

    def __init__(
        self,
        studio: EvaluationPictures,
        settings: Settings,
        job: DiffusersJob,
        scorer: Scorer,
        reference: ReferenceVectors,
        prompts: Sequence[tuple[str, str]],
        budget: int,
    ) -> None:
        from tqdm import tqdm

        self._studio, self._settings, self._job = studio, settings, job
        self._scorer, self._reference, self._prompts = scorer, reference, prompts
        self._bar: Any = tqdm(total=budget, file=sys.stderr, unit="picture", disable=None)

    def __call__(self, changes: Mapping[str, float], number: int) -> tuple[float, float]:
        """Identity and prompt consistency of the candidate's picture of this number."""
        text, judged = self._prompts[number % len(self._prompts)]
        job = replace(self._job, prompt=text, seed=self._job.seed + number)
        (trial,) = self._studio.pictures(self._settings.with_fields(changes), job)
        self._bar.update(1)
        return self._scorer.both(trial.picture, self._reference, judged)
