"""One generation with diffusers from request to pictures: the shell in which session and host meet."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_adapter import edits
from dp_adapter.hosts import diffusers as host
from dp_adapter.hosts import pipelines, previews, prompts
from dp_adapter.hosts.pipelines import Job, Pipeline, Prompts
from dp_adapter.hosts.predicted import told as told_calls
from dp_adapter.hosts.word_maps import WordMaps
from dp_adapter.identity.pictures import Picture
from dp_adapter.session import Explanation, Prepared, Scene, Session
from dp_adapter.session.watch import Decode, Watch
from dp_adapter.settings import Settings

JUDGE = "sface"
Vector = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Result:
    """One finished picture.

    Attributes:
        likeness: cosine of its largest face to the first person's photos by ``JUDGE``; 0 when no face is found,
            None when there was nobody to compare with.
    """

    picture: Picture
    seed: int
    likeness: float | None


@dataclass(frozen=True)
class Generation:
    """All pictures of one job, and what was done."""

    results: tuple[Result, ...]
    explanation: Explanation


def scene_of(pipeline: Pipeline, job: Job) -> Scene:
    """What the session needs to know about a job."""
    inpaint = None if job.mask is None else np.asarray(job.mask / 255, np.float32)
    return Scene(host.base_of(pipeline.unet), job.width, job.height, () if job.init is None else (job.init,), inpaint)


def generate(
    session: Session,
    pipeline: Pipeline,
    settings: Settings,
    job: Job,
    progress: Callable[[int, int], None] | None = None,
    told: Callable[[Explanation], None] | None = None,
) -> Generation:
    """Makes the pictures of a job.

    Args:
        told: called with the explanation before sampling.
        progress: called with steps done and steps in all.

    Raises:
        DPAdapterError: in words, before sampling.
    """
    prepared = session.prepare(settings, scene_of(pipeline, job))
    if told:
        told(prepared.explanation)
    target = reference_vector(session, settings) if prepared.explanation.active else None
    decode = None
    if prepared.tracker is not None:
        decode = previews.decoder(pipeline, settings.tracking.decoder, session.roots)
    pictures = sample(pipeline, prepared, worded(job, prepared), progress, decode)
    results = [
        Result(picture, job.seed + number, None if target is None else likeness(session, picture, target))
        for number, picture in enumerate(pictures)
    ]
    late = () if prepared.tracker is None else prepared.tracker.notes()
    return Generation(tuple(results), replace(prepared.explanation, notes=(*prepared.explanation.notes, *late)))


def sample(
    pipeline: Pipeline,
    prepared: Prepared,
    job: Job,
    progress: Callable[[int, int], None] | None = None,
    decode: Decode | None = None,
) -> list[Picture]:
    """Runs the sampler with the injection attached; the pipeline is as before afterwards.

    Args:
        decode: makes the previews in which regions are followed; without it they stay where they start.
    """
    return pipelines.run(pipeline, job, progress, around=_attaching(prepared, job, decode))


def worded(job: Job, prepared: Prepared) -> Job:
    """The job with the mode's words in its prompts."""
    if prepared.edit is None or not prepared.edit.words:
        return job
    first, *later = edits.stages(job.prompt, job.negative_prompt, prepared.edit.words)
    more = tuple(Prompts(stage.start, stage.prompt, stage.negative_prompt) for stage in later)
    return replace(job, prompt=first.prompt, negative_prompt=first.negative_prompt, later=more)


def _attaching(prepared: Prepared, job: Job, decode: Decode | None) -> Callable[[Any], AbstractContextManager[object]]:
    @contextmanager
    def around(running: Any) -> Generator[None]:
        train_timesteps = running.scheduler.config.num_train_timesteps
        rows = host.pipeline_rows(running)
        maps: WordMaps | None = None
        with ExitStack() as stack:
            if prepared.tracker is not None and decode is not None and prepared.injection.active:
                calls = int(job.steps * (1.0 if job.init is None else job.strength))
                words = prompts.person_words(running, job.prompt, job.batch, prepared.tracker.plan.words)
                maps = WordMaps(words.tokens)
                watch = stack.enter_context(Watch(prepared.tracker, decode, calls, maps, words.head))
                stack.enter_context(told_calls(running, watch.before_call, watch.after_call))
            attach = host.attach(running.unet, prepared.injection, rows, train_timesteps=train_timesteps, maps=maps)
            stack.enter_context(attach)
            yield

    return around


def reference_vector(session: Session, settings: Settings, identity: int = 0) -> Vector | None:
    """Mean direction [128] of one person's photos by the judge; None when its own detector finds no face in any."""
    seen, _ = session.photos.look(settings.replace(no_face="continue"), identity, session.encoders.yunet)
    if not seen:
        return None
    mean = np.mean([session.photos.judged(one) for one in seen], axis=0)
    return mean / np.linalg.norm(mean)


def likeness(session: Session, picture: Picture, target: Vector) -> float:
    """Cosine of a picture's largest face to a reference vector by the judge; 0 when no face is found."""
    faces = session.photos.faces(picture, session.encoders.yunet)
    if not faces:
        return 0.0
    largest = max(faces, key=lambda face: face.size)
    return round(float(session.photos.sface(picture, largest) @ target), 4)
