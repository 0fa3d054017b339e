"""One run of a diffusers sampler with what the session prepared: words, identity, and regions that follow faces."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dp_adapter import modes
from dp_adapter.core.types import Grid
from dp_adapter.hosts.attach import diffusers as host
from dp_adapter.hosts.attach.word_maps import WordMaps
from dp_adapter.hosts.pipelines import load_pipeline, preview_decoders
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, Pipeline, Progress, Prompts
from dp_adapter.hosts.pipelines.predicted_x0 import report_predictions
from dp_adapter.hosts.prompts import encode_prompts, textual_inversion
from dp_adapter.hosts.prompts.prompt_persons import name_persons, repeated
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.session import Prepared
from dp_adapter.session.regions.preview_watch import Decode, PreviewWatch


def sample(
    pipeline: Pipeline,
    prepared: Prepared,
    job: DiffusersJob,
    progress: Progress | None = None,
    roots: Sequence[Path] = (),
) -> list[Picture]:
    """Runs the sampler with the injection attached; the pipeline is as before afterwards.

    Args:
        roots: model folders, in which the decoder of previews is looked for.

    Raises:
        DPAdapterError: the decoder that was asked for is not here, or the adapter does not fit.
    """
    decode = None
    if prepared.tracker is not None and prepared.injection.active:
        decode = preview_decoders.decoder(pipeline, prepared.tracker.plan.decoder, roots)
    people = name_persons([job.prompt, *(one.prompt for one in job.later)], prepared.prompt_persons, webui=False)
    job, prepared = edit_prompts(job, prepared), replace(prepared, prompt_persons=people)
    return load_pipeline.run(pipeline, job, progress, around=partial(_attach, prepared, job, decode))


def edit_prompts(job: DiffusersJob, prepared: Prepared) -> DiffusersJob:
    """The job with the mode's words in its prompts, and with a person's word as often as it has to stand there."""
    if prepared.mode is not None and prepared.mode.words:
        first, *later = modes.split_stages(job.prompt, job.negative_prompt, prepared.mode.words)
        more = tuple(Prompts(stage.start, stage.prompt, stage.negative_prompt) for stage in later)
        job = replace(job, prompt=first.prompt, negative_prompt=first.negative_prompt, later=more)
    if not prepared.prompt_persons:
        return job
    more = tuple(replace(one, prompt=repeated(one.prompt, prepared.prompt_persons, webui=False)) for one in job.later)
    return replace(job, prompt=repeated(job.prompt, prepared.prompt_persons, webui=False), later=more)


@contextmanager
def _attach(prepared: Prepared, job: DiffusersJob, decode: Decode | None, running: Any) -> Generator[None]:
    """Inside the ``with``, the pipeline that runs carries what was prepared."""
    people, schedule = prepared.prompt_persons, running.scheduler
    maps: WordMaps | None = None
    with ExitStack() as stack:
        if prepared.tracker is not None and decode is not None:
            words = encode_prompts.person_words(running, job.prompt, job.batch, prepared.tracker.plan.words)
            maps = WordMaps(words.tokens, Grid(job.height // 8, job.width // 8))
            watch = stack.enter_context(_watch(running, prepared, decode, maps, words.head))
            stack.enter_context(report_predictions(running, watch.before_call, watch.after_call))
        spoken = encode_prompts.find_spoken(running, job, people) if people else None
        attached = host.attach(
            running.unet,
            prepared.injection,
            host.pipeline_rows(running),
            train_timesteps=schedule.config.num_train_timesteps,
            maps=maps,
            words=None if spoken is None else textual_inversion.spelled(running, job, people, spoken),
            alphas_cumprod=schedule.alphas_cumprod,
        )
        stack.enter_context(attached)
        yield


def _watch(
    running: Any, prepared: Prepared, decode: Decode, maps: WordMaps, head: Callable[[int], bool]
) -> PreviewWatch:
    assert prepared.tracker is not None
    schedule = prepared.injection.schedule
    beside = running.unet.device.type == "cpu"  # a GPU decodes faster between two calls than beside one
    return PreviewWatch(prepared.tracker, decode, lambda: running.num_timesteps, maps, head, schedule.at, beside)
