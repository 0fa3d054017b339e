"""Session and host joined: what a generation hands back, and that it leaves the pipeline as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp_adapter import generation
from dp_adapter.core.latent_gate import LatentGate
from dp_adapter.errors import FaceError, HostError
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob
from dp_adapter.identity.pictures.picture_files import load_picture
from dp_adapter.session import Session
from dp_adapter.session.results import judge
from dp_adapter.settings import Settings
from dp_adapter.weights import formats
from dp_adapter.weights.families import own_adapter
from tests import tiny

JOB = DiffusersJob("a garden", width=64, height=64, steps=2, sampler="ddim")


@pytest.fixture(scope="module")
def pipeline(tiny_folder: Path) -> load_pipeline.Pipeline:
    return load_pipeline.load(tiny_folder, "cpu", "float32")


@pytest.fixture
def settings(portrait: Path) -> Settings:
    return Settings.from_dict({"references": [{"image": str(portrait)}], "regions": [{"kind": "full"}]})


def module_state(pipeline: Any) -> tuple[list[int], list[Callable[..., Any]], bool]:
    modules = list(pipeline.unet.modules())
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    return [id(module) for module in modules], [type(module).forward for module in modules], hooked


def test_results_progress_and_return(pipeline: load_pipeline.Pipeline, models: Path, settings: Settings) -> None:
    before = module_state(pipeline)
    steps: list[tuple[int, int]] = []
    job = DiffusersJob("a garden", width=64, height=64, steps=2, sampler="ddim", seed=5, batch=2)

    def note(done: int, total: int) -> None:
        steps.append((done, total))

    made = generation.generate(Session([models], True), pipeline, settings, job, note)
    assert steps == [(1, 2), (2, 2)] and [result.seed for result in made.results] == [5, 6]
    assert all(result.likeness is not None and -1 <= result.likeness <= 1 for result in made.results)
    assert made.explanation.active and module_state(pipeline) == before and not before[2]


def test_a_scene_encodes_texts(pipeline: Any) -> None:
    encode = generation.scene_of(pipeline, JOB).encode
    assert encode is not None
    contexts = encode(["a man", "a woman"])
    theirs = [pipeline.encode_prompt(text, "cpu", 1, False)[0] for text in ("a man", "a woman")]
    torch.testing.assert_close(contexts, torch.cat(theirs))
    with pytest.raises(HostError, match="too long"):
        encode([" ".join(["cat"] * 76)])


def test_a_scene_encodes_pictures(pipeline: Any) -> None:
    encode = generation.scene_of(pipeline, JOB).encode_picture
    assert encode is not None
    picture = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
    latents = encode(picture)
    assert latents.shape == (4, 8, 6) and latents.dtype == torch.float32
    theirs = pipeline.vae.encode(
        pipeline.image_processor.preprocess((picture[None] / 255).astype(np.float32))
    ).latent_dist.mode()
    torch.testing.assert_close(latents[None], theirs * pipeline.vae.config.scaling_factor)


def test_photo_attention(pipeline: load_pipeline.Pipeline, models: Path, portrait: Path) -> None:
    """It acts in its region, by itself too; off, and outside of its span, the numbers are the very same."""
    session, before = Session([models], True), module_state(pipeline)

    def made(strength: float, **attention: float) -> generation.Generation:
        fields = {"references": [{"image": str(portrait)}], "regions": [{"kind": "full"}], "weight": strength}
        settings = Settings.from_dict({**fields, "reference_attention": attention})
        return generation.generate(session, pipeline, settings, JOB)

    plain = load_pipeline.run(pipeline, JOB)[0]
    assert np.array_equal(made(0.0, weight=0.0).results[0].picture, plain)
    alone = made(0.0, weight=0.8)
    assert not np.array_equal(alone.results[0].picture, plain)
    (told,) = alone.explanation.persons
    assert alone.explanation.active and told.looks_at == "photo attention 0.8 from 0 to 1 to photo 1"
    assert told.looks_at in " ".join(alone.explanation.lines())
    identity = made(0.8).results[0].picture
    assert not np.array_equal(made(0.8, weight=0.8).results[0].picture, identity)
    assert np.array_equal(made(0.8, weight=0.8, start=0.999).results[0].picture, identity)
    assert module_state(pipeline) == before


def test_a_gate_places_the_identity_from_the_second_step_on(
    pipeline: load_pipeline.Pipeline, models: Path, portrait: Path
) -> None:
    """Of its predictions alone: no preview is decoded, and where it sees nothing nothing is changed."""
    adapter = formats.read(models / "dp_adapter" / "untrained.safetensors").adapter
    adapter.gate = LatentGate()
    with torch.no_grad():
        for parameter in adapter.gate.parameters():
            parameter.zero_()
    pictures: dict[float, Any] = {}
    job = DiffusersJob("a garden", width=64, height=64, steps=4, sampler="ddim")
    before = module_state(pipeline)
    for bias in (-200.0, 200.0):  # nobody, everybody
        adapter.gate.get_parameter("last.bias").data.fill_(bias)
        own_adapter.save(models / "dp_adapter" / "gated.safetensors", adapter, "sd15", "sface", {})
        facts = {"references": [{"image": str(portrait)}], "model": "gated", "tracking": {"fallback": "none"}}
        request = Settings.from_dict(facts)
        made = [generation.generate(Session([models], True), pipeline, request, job) for _ in range(2)]
        pictures[bias] = made[0].results[0].picture
        assert np.array_equal(made[1].results[0].picture, pictures[bias]) and module_state(pipeline) == before
        assert ("was not found" in " ".join(made[0].late)) == (bias < 0)
    plain = load_pipeline.run(pipeline, job)[0]
    assert np.array_equal(pictures[-200.0], plain) and not np.array_equal(pictures[200.0], plain)


def test_a_failure_while_sampling_leaves_the_pipeline_as_it_was(
    pipeline: load_pipeline.Pipeline, models: Path, settings: Settings
) -> None:
    session, before = Session([models], True), module_state(pipeline)
    base = load_pipeline.run(pipeline, JOB)[0]
    seen: list[bool] = []

    def interrupt(done: int, total: int) -> None:
        seen.append(module_state(pipeline)[2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generation.generate(session, pipeline, settings, JOB, interrupt)
    assert seen == [True], "it was attached"
    assert module_state(pipeline) == before
    assert np.array_equal(load_pipeline.run(pipeline, JOB)[0], base)
    assert not np.array_equal(generation.generate(session, pipeline, settings, JOB).results[0].picture, base)


def test_refusals_come_before_sampling(pipeline: load_pipeline.Pipeline, models: Path, faceless: Path) -> None:
    settings = Settings.from_dict({"references": [{"image": str(faceless)}]})
    with pytest.raises(FaceError):
        generation.generate(
            Session([models], True), pipeline, settings, JOB, lambda _done, _total: pytest.fail("it sampled")
        )


def test_an_adapter_of_other_widths_is_refused(
    pipeline: load_pipeline.Pipeline, models: Path, portrait: Path, settings: Settings
) -> None:
    """Its base is right, its widths are not: the host says so before the first step."""
    from dp_adapter.weights.families import own_adapter

    torch.manual_seed(0)
    narrow = tiny.adapter("sd15")
    with torch.no_grad():
        narrow.projection = type(narrow.projection)(128, 32, 4, tiny.CONTEXT)  # type: ignore[call-arg,arg-type]
    own_adapter.save(models / "dp_adapter" / "narrow.safetensors", narrow, "sd15", "sface", {})
    with pytest.raises(HostError):
        generation.generate(Session([models], True), pipeline, settings.replace(model="narrow"), JOB)


def test_switched_off_is_not_compared(pipeline: load_pipeline.Pipeline, models: Path, settings: Settings) -> None:
    off = generation.generate(Session([models], True), pipeline, settings.replace(weight=0.0), JOB)
    assert off.results[0].likeness is None and not off.explanation.active
    assert np.array_equal(off.results[0].picture, load_pipeline.run(pipeline, JOB)[0])


def test_likeness_is_one_for_the_photo_itself_and_none_without_a_face(
    models: Path, settings: Settings, portrait: Path, faceless: Path
) -> None:
    session = Session([models], True)
    target = judge.reference_vector(session, settings)
    assert target is not None and target.shape == (128,) and np.linalg.norm(target) == pytest.approx(1, abs=1e-5)
    seeing = judge.Judge(session, settings)
    assert seeing.see(load_picture(portrait)).likeness[0] == pytest.approx(1, abs=1e-3)
    assert seeing.see(load_picture(faceless)).likeness[0] is None


def test_the_scene_is_the_jobs(pipeline: load_pipeline.Pipeline) -> None:
    init, mask = np.zeros((64, 72, 3), np.uint8), np.full((64, 72), 255, np.uint8)
    scene = generation.scene_of(pipeline, DiffusersJob("a", width=72, height=64, steps=4, init=init, mask=mask))
    assert (scene.base, scene.width, scene.height) == ("sd15", 72, 64)
    assert scene.inits == (init,) and scene.inpaint is not None and scene.inpaint.dtype == np.float32
    assert scene.inpaint.min() == scene.inpaint.max() == 1
    assert generation.scene_of(pipeline, JOB).inpaint is None


def test_a_modes_words_are_in_the_prompt_and_told_before(
    pipeline: load_pipeline.Pipeline, models: Path, portrait: Path
) -> None:
    fields = {"references": [{"image": str(portrait)}], "mode": "full_body"}
    settings = Settings.from_dict(fields)
    session = Session([models], True)
    told: list[str] = []
    made = generation.generate(session, pipeline, settings, JOB, on_explanation=lambda one: told.extend(one.lines()))
    assert "Words: full body, wide shot, head to toe, feet visible (up to 0.6)." in told
    prepared = session.prepare(settings, generation.scene_of(pipeline, JOB))
    job = generation.edit_prompts(JOB, prepared)
    assert job.prompt == "a garden, full body, wide shot, head to toe, feet visible"
    assert [(one.start, one.prompt) for one in job.later] == [(0.6, "a garden, full body")]
    without = generation.generate(session, pipeline, settings.replace(mode_words=False), JOB)
    assert (made.results[0].picture != without.results[0].picture).any()
    assert (
        generation.edit_prompts(JOB, session.prepare(Settings(enabled=False), generation.scene_of(pipeline, JOB)))
        is JOB
    )
