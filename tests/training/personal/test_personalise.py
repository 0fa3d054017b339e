"""Personalising: what is trained, the file, and that pictures see the very context that training saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter import generation
from dp_adapter.cli import main
from dp_adapter.core.text.text_side import compute_change
from dp_adapter.core.types import Features
from dp_adapter.errors import DPAdapterError, HostError
from dp_adapter.hosts.attach import diffusers as host
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob
from dp_adapter.hosts.prompts import encode_prompts, textual_inversion
from dp_adapter.identity.faces.face import TEMPLATE, Face
from dp_adapter.sampling import edit_prompts
from dp_adapter.session import Session
from dp_adapter.settings import Settings
from dp_adapter.training.personal import learned_words, personal_losses
from dp_adapter.training.personal.personal_objective import (
    LatentBank,
    PersonalObjective,
    PersonalOptions,
    draw_batch,
    encode_views,
)
from dp_adapter.training.personal.personalise import make_personal, personalise
from dp_adapter.training.personal.text_attention import token_shares
from dp_adapter.training.personal.varied_views import Subject, mean_embedding, vary
from dp_adapter.weights import formats
from dp_adapter.weights.families import personal
from dp_adapter.weights.families.personal import Personal
from tests.hosts.pipelines import test_load_pipeline

sdxl_folder = test_load_pipeline.sdxl_folder
NAMES = ("Ada Lovelace", "Alan Turing", "Emmy Noether")
TINY = PersonalOptions(steps=2, batch=2, templates=("a photo of a {}", "portrait of the {}, smiling"))
JOB = DiffusersJob("a photo of a woman in a garden", width=64, height=64, steps=2, sampler="ddim", seed=3)


@pytest.fixture(scope="module")
def pipeline(tiny_folder: Path) -> Any:
    return load_pipeline.load(tiny_folder, "cpu", "float32")


@pytest.fixture(scope="module")
def bank(pipeline: Any) -> LatentBank:
    return encode_views(pipeline, vary([subject()], 64, 2, np.random.default_rng(0)))


def subject() -> Subject:
    """A striped photo with a face at a known place."""
    picture = np.zeros((120, 160, 3), np.uint8)
    picture[:, ::8] = 200
    head = np.zeros((120, 160), np.float32)
    head[20:80, 50:110] = 1
    face = Face(np.array([60, 30, 100, 80], np.float32), np.asarray(TEMPLATE * 0.4 + 50, np.float32), 1.0)
    return Subject(picture, face, np.linspace(-1, 1, 24, dtype=np.float32), head)


def faceid() -> Tensor:
    return torch.as_tensor(mean_embedding([subject()]))


def test_the_loss_of_one_batch_falls_and_all_parts_learn(pipeline: Any, bank: LatentBank) -> None:
    net = make_personal(pipeline, faceid(), NAMES, TINY)
    assert net.learned is not None and net.adapter.gamma == 0
    assert torch.equal(net.learned, net.get_buffer("anchor")), "Cross Initialization"
    objective = PersonalObjective(pipeline, net, TINY, 64)
    batch = draw_batch(pipeline, bank, objective, TINY, torch.Generator().manual_seed(1))
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    first = [net.learned, net.adapter.gamma]
    rest = [one for one in net.parameters() if all(one is not other for other in first)]
    optimiser = torch.optim.AdamW([{"params": first, "lr": 0.05}, {"params": rest, "lr": 2e-3}])
    seen: list[float] = []
    for _ in range(8):
        terms = objective.losses(batch)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        seen.append(float(terms["denoising"].detach()))
    assert seen[-1] < seen[0] - 1e-3, seen
    trained = {name: value for name, value in net.named_parameters() if "bias" not in name}
    assert not [name for name, one in trained.items() if one.grad is None or not one.grad.any()]
    assert not [name for name, one in trained.items() if torch.equal(before[name], one)]
    assert all(one.grad is None for one in pipeline.text_encoder.parameters())


def test_what_is_trained_is_what_pictures_see(pipeline: Any, bank: LatentBank, tmp_path: Path, models: Path) -> None:
    net = make_personal(pipeline, faceid(), NAMES, TINY)
    learning = personalise(pipeline, net, bank, replace(TINY, steps=1), None)
    assert len(learning.curve) == 1 and set(learning.curve[0]) == {"denoising", "prior"}
    with torch.no_grad():
        net.adapter.gamma.fill_(1.5)  # as after a whole training
    personal.save(models / "dp_adapter" / "ada.safetensors", net, "sd15", "Ada", {"steps": 1})
    text = "a photo of a woman in a garden"
    objective = PersonalObjective(
        pipeline, net, replace(TINY, templates=("a photo of a {} in a garden",), word="woman"), 64
    )
    with torch.no_grad():
        expected = objective.encode(objective.texts)  # y' [1, 77, D]
    settings = Settings.from_dict({"model": "ada.safetensors", "weight": 1.0, "regions": [{"kind": "full"}]})
    prepared = Session([models], True).prepare(settings, generation.scene_of(pipeline, JOB))
    job = edit_prompts(JOB, prepared)
    assert job.prompt == "a photo of a woman woman in a garden"
    words = textual_inversion.spelled(
        pipeline, job, prepared.prompt_persons, encode_prompts.find_spoken(pipeline, job, prepared.prompt_persons)
    )
    plain = encode_prompts.encode(pipeline, job.prompt, "", guided=False)["prompt_embeds"]
    (identity,) = prepared.injection.identities
    assert identity.text is not None
    change = compute_change(identity.text, plain[0], words.texts[0][0][0], words.learned_chunks)
    made = plain[0].index_add(0, change.tokens, change.delta)
    torch.testing.assert_close(made, expected[0], atol=1e-5, rtol=1e-5)
    latents, step = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(400)
    rows = host.pipeline_rows(pipeline)
    pipeline._guidance_scale = 1.0
    with torch.no_grad():
        with host.attach(pipeline.unet, prepared.injection, rows, words=words):
            with_file = pipeline.unet(latents, step, plain).sample
        trained = pipeline.unet(latents, step, expected).sample
        without = pipeline.unet(latents, step, plain).sample
    torch.testing.assert_close(with_file, trained, atol=1e-5, rtol=1e-4)
    assert (with_file - without).abs().max() > 1e-3, text


def test_a_picture_with_the_file_and_the_return(pipeline: Any, models: Path) -> None:
    net = make_personal(pipeline, faceid(), NAMES, TINY)
    with torch.no_grad():
        net.adapter.gamma.fill_(2.0)
    personal.save(models / "dp_adapter" / "ada.safetensors", net, "sd15", "Ada", {})
    settings = Settings.from_dict({"model": "ada.safetensors", "regions": [{"kind": "full"}]})
    session = Session([models], True)
    made = generation.generate(session, pipeline, settings, JOB)
    (plain,) = load_pipeline.run(pipeline, JOB)
    assert not np.array_equal(made.results[0].picture, plain)
    assert any("learned words in its place" in line for line in made.explanation.lines())
    off = generation.generate(session, pipeline, settings.replace(weight=0.0), JOB)
    assert np.array_equal(off.results[0].picture, plain)
    assert not pipeline.text_encoder.get_input_embeddings()._forward_hooks
    with pytest.raises(HostError, match="no word for person 1"):
        generation.generate(session, pipeline, settings, replace(JOB, prompt="a garden"))


def test_released_behaviour_applies_the_words_alone(pipeline: Any, bank: LatentBank, tmp_path: Path) -> None:
    options = replace(TINY, released=True)
    net = make_personal(pipeline, faceid(), NAMES, options)
    enhancer = {name: value.clone() for name, value in net.enhancer.state_dict().items()}
    personalise(pipeline, net, bank, options)
    assert all(torch.equal(value, enhancer[name]) for name, value in net.enhancer.state_dict().items())
    assert net.learned is not None and not torch.equal(net.learned, net.get_buffer("anchor"))
    personal.save(tmp_path / "ada.safetensors", net, "sd15", "Ada", {})
    identity = formats.read(tmp_path / "ada.safetensors").on_text(Features())
    context = torch.randn(77, 64)
    assert identity is not None and torch.equal(identity.fuse(context, (3, 4)), context)


def test_the_same_seed_learns_the_same_and_an_interruption_keeps_what_is_there(pipeline: Any, bank: LatentBank) -> None:
    first = personalise(pipeline, make_personal(pipeline, faceid(), NAMES, TINY), bank, TINY)

    def stop(done: int, _total: int, _losses: dict[str, float]) -> None:
        if done == 2:
            raise KeyboardInterrupt

    second = personalise(pipeline, make_personal(pipeline, faceid(), NAMES, TINY), bank, replace(TINY, steps=9), stop)
    assert second.interrupted and len(second.curve) == 2 and not first.interrupted
    for name, value in first.personal.state_dict().items():
        assert torch.equal(value, second.personal.state_dict()[name]), name


def test_masks_and_context_regularisation(pipeline: Any, bank: LatentBank) -> None:
    options = replace(TINY, steps=1, masked=True, core=True, checkpointing=True)
    net = make_personal(pipeline, faceid(), NAMES, options)
    learning = personalise(pipeline, net, bank, options)
    assert set(learning.curve[0]) == {"denoising", "prior", "context", "attention"}
    assert learning.curve[0]["context"] > 0 and learning.curve[0]["attention"] > 0
    assert not pipeline.unet.training and not pipeline.unet.is_gradient_checkpointing
    error = torch.zeros(1, 4, 2, 2)
    error[..., 0, 0] = 3
    mask = torch.zeros(1, 1, 2, 2)
    mask[..., 0, 0] = 1
    assert float(personal_losses.denoising(error, torch.zeros_like(error), mask)) == pytest.approx(9)
    assert float(personal_losses.denoising(error, torch.zeros_like(error))) == pytest.approx(9 / 4)


def test_pairs_compare_the_same_words(pipeline: Any) -> None:
    (pair,) = learned_words.make_prompt_pairs(pipeline, "person", 2, ("a {} on the beach",))
    ids, plain = pair.learned.ids[0][0], pair.plain.ids[0][0]
    assert ids[pair.around].tolist() == plain[pair.around_plain].tolist()
    assert pair.learned.places[0].tolist()[:5] == [-1, -1, 0, 1, -1]
    assert ids[pair.around][-1] == pipeline.tokenizer.eos_token_id and len(pair.around) == 5


def test_token_shares_sum_to_one(pipeline: Any) -> None:
    with token_shares(pipeline.unet) as shares, torch.no_grad():
        pipeline.unet(torch.zeros(2, 4, 8, 8), 5, torch.randn(2, 77, 64))
    torch.testing.assert_close(shares.mean.sum(-1), torch.ones(2))
    assert not pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q._forward_hooks


def test_the_distance_is_mahalanobis() -> None:
    anchor = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    precision = personal_losses.inverse_covariance(anchor)
    words = (anchor + 0.1).requires_grad_()
    found = personal_losses.mahalanobis(words, anchor, precision)
    inverse = np.linalg.inv(np.cov(anchor.numpy().T) + 2e-5 * np.eye(5))
    difference = np.full(5, 0.1)
    assert float(found) == pytest.approx(float(np.sqrt(difference @ inverse @ difference)), rel=1e-3)


def test_cross_initialization_is_the_encoders_output(pipeline: Any) -> None:
    anchor = learned_words.compute_anchor(pipeline, ["ada ada"], 2)
    ids = torch.tensor([pipeline.tokenizer("ada ada", padding="max_length").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(anchor, pipeline.text_encoder(ids)[0][0, 1:3])


def test_sdxl_has_words_for_both_encoders(sdxl_folder: Path) -> None:
    pipeline: Any = load_pipeline.load(sdxl_folder, "cpu", "float32")
    options = replace(TINY, batch=1)
    net = make_personal(pipeline, faceid(), NAMES, options)
    assert net.learned is not None and net.learned.shape[1] == sum(textual_inversion.widths(pipeline))
    objective = PersonalObjective(pipeline, net, options, 64)
    objective.encode(objective.texts).square().sum().backward()
    assert net.learned.grad is not None
    assert all(one.any() for one in torch.split(net.learned.grad, textual_inversion.widths(pipeline), dim=1))
    sdxl_bank = LatentBank(torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8), torch.ones(1, 1, 8, 8))
    with torch.no_grad():
        batch = draw_batch(pipeline, sdxl_bank, objective, options, torch.Generator().manual_seed(0))
        assert torch.isfinite(objective.losses(batch)["denoising"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"word": "antidisestablishment"}, "tokens for the text encoder"),
        ({"templates": ("a photo",)}, "must have {} once"),
        ({"templates": ("a " * 80 + "{}",)}, "too long for one chunk"),
    ],
)
def test_what_cannot_be_learned_is_said(pipeline: Any, changed: dict[str, Any], words: str) -> None:
    options = replace(TINY, **changed)
    with pytest.raises(HostError, match=words):
        PersonalObjective(pipeline, make_personal(pipeline, faceid(), NAMES, options), options, 64)


def test_the_command_line_from_photo_to_file(
    tiny_folder: Path, portrait: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "personalise", str(portrait), "--base", str(tiny_folder), "--device", "cpu", "--size", "64", "--steps", "1",
        "--batch", "1", "--views", "2", "--name", "ada", "--models-dir", str(tmp_path),
        "--export-embedding", str(tmp_path / "ada-words.safetensors"),
    )  # fmt: skip
    assert main(arguments) == 0
    checkpoint = formats.read(tmp_path / "dp_adapter" / "ada.safetensors")
    net = checkpoint.adapter.projection
    assert isinstance(net, Personal) and net.learned is not None and len(net.get_buffer("faceid")) == 128
    pipeline = load_pipeline.load(tiny_folder, "cpu", "float32")
    pipeline.load_textual_inversion(str(tmp_path), weight_name="ada-words.safetensors", token="<ada>")
    added = pipeline.tokenizer.convert_tokens_to_ids(["<ada>", "<ada>_1"])
    table = pipeline.text_encoder.get_input_embeddings().weight
    torch.testing.assert_close(table[added], net.learned.detach())
    assert main(arguments) == 1
    assert "is there already" in capsys.readouterr().err


def test_numbers_that_cannot_be_used() -> None:
    with pytest.raises(DPAdapterError, match="steps is 0"):
        PersonalOptions(steps=0)
    with pytest.raises(DPAdapterError, match="0 or more"):
        PersonalOptions(rate=float("nan"))
