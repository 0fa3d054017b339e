"""One generation with diffusers from request to pictures: the shell in which session and host meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from dp_adapter.hosts.attach import diffusers as host
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.pipelines.encode_pictures import latents_of
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, Pipeline
from dp_adapter.hosts.pipelines.native_size import of_pipeline
from dp_adapter.hosts.prompts import encode_prompts, person_words
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.sampling import Progress, edit_prompts, sample
from dp_adapter.session import Explanation, Prepared, Scene, Session
from dp_adapter.session.explain import explain_inaction
from dp_adapter.session.results import acted_regions, best_of, face_pass_plan
from dp_adapter.session.results.judge import Judge, LikenessVerdict, find
from dp_adapter.session.scene import Mask
from dp_adapter.settings import Settings


@dataclass(frozen=True, eq=False)
class Result:
    """One finished picture.

    Attributes:
        seed: that makes it; not the asked-for one where another candidate was kept.
        verdict: what the judge found; None where nobody was asked for.
        facts: what was measured, as short texts by name.
        words: the same in one sentence.
        left_out: whether it is less like the photos than was asked for.
        regions: by person, where they acted [h, w] in 0..1; None is the whole picture.
    """

    picture: Picture
    seed: int
    verdict: LikenessVerdict | None = None
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    words: str = ""
    left_out: bool = False
    regions: Mapping[int, Mask | None] = field(default_factory=dict[int, Mask | None])

    @property
    def likeness(self) -> float | None:
        """Cosine of the first person; 0 when they are not found, None when there was nobody to compare with."""
        if self.verdict is None or 0 not in self.verdict.likeness:
            return None
        return self.verdict.likeness[0] or 0.0


@dataclass(frozen=True)
class Generation:
    """All pictures of one job, and what was done.

    Attributes:
        late: the notes of the explanation that nobody could know before sampling.
    """

    results: tuple[Result, ...]
    explanation: Explanation
    late: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[Result, ...]:
        """Those that are not left out."""
        return tuple(result for result in self.results if not result.left_out)


def scene_of(pipeline: Pipeline, job: DiffusersJob) -> Scene:
    """What the session needs to know about a job."""
    inpaint = None if job.mask is None else np.asarray(job.mask / 255, np.float32)
    inits = () if job.init is None else (job.init,)
    encode = partial(encode_prompts.contexts, pipeline)
    words = person_words.single_persons(job.prompt)
    size: int = next(pipeline.unet.parameters()).element_size()
    base = host.base_of(pipeline.unet)
    scene = Scene(base, job.width, job.height, inits, inpaint, encode=encode, words=words, bytes_per_number=size)
    return replace(scene, encode_picture=partial(latents_of, pipeline), progress=load_pipeline.progress(pipeline, job))


def generate(
    session: Session,
    pipeline: Pipeline,
    settings: Settings,
    job: DiffusersJob,
    progress: Progress | None = None,
    on_explanation: Callable[[Explanation], None] | None = None,
) -> Generation:
    """Makes the pictures of a job, with the further pictures that the report needs.

    Args:
        progress: called with steps done and steps in all, anew for each run of the sampler.
        on_explanation: called with the explanation before sampling.

    Raises:
        DPAdapterError: in words, before sampling.
    """
    prepared = session.prepare(settings, scene_of(pipeline, job))
    if on_explanation:
        on_explanation(prepared.explanation)
    finisher = _Finisher(session, pipeline, settings, prepared, progress)
    pictures = sample(pipeline, prepared, job, progress, session.roots)
    single = replace(job, batch=1)
    results = [
        finisher.finish(replace(single, seed=job.seed + number), picture, number)
        for number, picture in enumerate(pictures)
    ]
    late = explain_inaction(prepared.injection, load_pipeline.progress(pipeline, job))
    if prepared.tracker is not None and not late:
        late = prepared.tracker.notes()
    explanation = replace(prepared.explanation, notes=(*prepared.explanation.notes, *late))
    return Generation(tuple(results), explanation, late)


@dataclass(frozen=True, eq=False)
class _Made:
    """A finished picture, where the persons acted in it, and what was done to it after sampling."""

    picture: Picture
    regions: Mapping[int, Mask | None]
    facts: Mapping[str, str] = field(default_factory=dict[str, str])


class _Finisher:
    """Finishes the pictures of one job.

    Raises:
        DPAdapterError: there are no photos to compare with.
    """

    def __init__(
        self, session: Session, pipeline: Pipeline, settings: Settings, prepared: Prepared, progress: Progress | None
    ) -> None:
        self._session = session
        self._pipeline = pipeline
        self._settings = settings
        self._prepared = prepared
        self._progress = progress
        explanation = prepared.explanation
        self._wanted = settings.enabled and best_of.needs_judge(settings.report)
        encoders = [name for person in explanation.persons for name in person.encoders]
        judged = explanation.active or self._wanted or (face_pass_plan.is_wanted(settings, prepared.mode))
        self._judge = Judge(session, settings, encoders) if judged else None

    def finish(self, job: DiffusersJob, picture: Picture, number: int) -> Result:
        """A picture as it is handed back.

        Args:
            job: makes this one picture alone.
            picture: as it was sampled.
            number: of the picture in its batch.
        """
        made = self._with_faces(job, picture, number, self._prepared)
        judge = self._judge
        if judge is None:
            return Result(made.picture, job.seed, facts=made.facts, regions=made.regions)
        first = best_of.Candidate(0, judge.see(made.picture), made)
        if not self._wanted:
            return Result(made.picture, job.seed, first.verdict, made.facts, regions=made.regions)

        def make(place: int) -> best_of.Candidate[_Made]:
            candidate = self._candidate(at_seed(place))
            return best_of.Candidate(place, judge.see(candidate.picture), candidate)

        def at_seed(place: int) -> DiffusersJob:
            return replace(job, seed=best_of.candidate_seed(job.seed, place))

        def compare(kept: best_of.Candidate[_Made]) -> best_of.Drift:
            (plain,) = load_pipeline.run(
                self._pipeline, edit_prompts(at_seed(kept.number), self._prepared), self._progress
            )
            region = acted_regions.union(kept.made.regions, (job.width, job.height))
            return best_of.measure_drift(kept.made.picture, plain, region)

        chosen = best_of.choose(judge.name, self._settings.report, first, make, compare)
        kept = chosen.candidate
        return Result(
            picture=kept.made.picture,
            seed=at_seed(kept.number).seed,
            verdict=kept.verdict,
            facts={**kept.made.facts, **chosen.facts},
            words=chosen.sentence,
            left_out=chosen.left_out,
            regions=kept.made.regions,
        )

    def _candidate(self, job: DiffusersJob) -> _Made:
        prepared = self._session.prepare(self._settings, scene_of(self._pipeline, job))
        (picture,) = sample(self._pipeline, prepared, job, self._progress, self._session.roots)
        return self._with_faces(job, picture, 0, prepared)

    def _with_faces(self, job: DiffusersJob, picture: Picture, number: int, prepared: Prepared) -> _Made:
        """The picture after the face pass."""
        settings = self._settings
        regions = acted_regions.regions_of(prepared, number)
        if not (self._judge and regions and face_pass_plan.is_wanted(settings, prepared.mode)):
            return _Made(picture, regions)
        faces = find(self._session.encoders, picture)
        theirs = self._judge.whose(picture, faces, regions) if faces else {}
        side = face_pass_plan.side(settings.face_pass, of_pipeline(self._pipeline), job.width, job.height)
        for person, face in sorted(theirs.items(), key=lambda one: -one[1].size):
            part = face_pass_plan.square(face, job.width, job.height, side)
            over = replace(
                job,
                width=part.work,
                height=part.work,
                init=face_pass_plan.enlarge_square(picture, part),
                mask=None,
                strength=settings.face_pass.strength,
                steps=max(job.steps, math.ceil(1 / settings.face_pass.strength)),  # one at least
            )
            ready = self._session.prepare(
                face_pass_plan.request(settings, prepared.mode, person), scene_of(self._pipeline, over)
            )
            (made,) = sample(self._pipeline, ready, over, self._progress, self._session.roots)
            picture = face_pass_plan.paste_square(picture, made, part, face)
        done = f"{len(theirs)} of {len(theirs)}" if faces else "no face"
        return _Made(picture, regions, {"face pass": done})
