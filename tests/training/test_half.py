"""fp16: the identity loss's pictures, the scaler over stages, and personalising."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator  # pyright: ignore[reportMissingTypeStubs]

from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.training import dry_run
from dp_adapter.training.base_model import FrozenBase
from dp_adapter.training.config import TrainingStage, from_tables
from dp_adapter.training.parallel.learner import Learner
from dp_adapter.training.personal.personal_objective import encode_views
from dp_adapter.training.personal.personalise import make_personal, personalise
from dp_adapter.training.personal.varied_views import vary
from tests.training.personal.test_personalise import NAMES, TINY, faceid, subject


def frozen(folder: Path, dtype: str) -> FrozenBase:
    """With a VAE whose activations leave float16's range, as SDXL's do."""
    base = FrozenBase(load_pipeline.load(folder, "cpu", dtype), folder.name)
    with torch.no_grad():
        base.vae.decoder.conv_in.weight.mul_(3e4)
    return base


def test_a_vae_that_overflows_in_half_precision_decodes_in_full(base: Path) -> None:
    latents = 3 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    full = frozen(base, "float32").decode(latents)
    half = frozen(base, "float16")
    assert not half.vae.decode(latents.half()).sample.isfinite().all()
    taken = latents.clone().requires_grad_()
    with torch.autocast("cpu", torch.float16):
        made = half.decode(taken)
    assert (made - full).abs().max() < 0.02 * full.abs().max()
    made.sum().backward()  # pyright: ignore[reportUnknownMemberType]
    assert taken.grad is not None
    assert taken.grad.isfinite().all() and taken.grad.abs().max() > 0
    assert half.vae.dtype == torch.float16  # the pipeline that draws the samples has it


def test_the_estimate_knows_the_copy(tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = dry_run.ForwardPass(0, 0, 0, 0)  # weights alone count here
    monkeypatch.setattr(dry_run, "measure_pass", lambda _run, _module: nothing)  # pyright: ignore[reportUnknownLambdaType]
    tables["stage"] = tables["stage"][:1]

    def needs(precision: str, identity: float) -> int:
        stage = {**tables["stage"][0], "losses": {"identity": identity}}
        return (
            dry_run.estimate(from_tables({**tables, "precision": precision, "stage": [stage]}), 1e12).stages[0].frozen
        )

    vae = sum(one.numel() for one in frozen(Path(tables["base"]["model"]), "float32").vae.parameters())
    assert needs("fp16", 0.1) - needs("fp16", 0.0) == 4 * vae
    assert needs("bf16", 0.1) == needs("bf16", 0.0) == needs("fp16", 0.0)


def test_the_scaler_goes_on_in_the_next_stage() -> None:
    def learner() -> Learner:
        accelerator: Any = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)  # accelerate's own wants a GPU
        model: Any = torch.nn.Linear(2, 1)
        return Learner(accelerator, model, [{"params": list(model.parameters()), "lr": 0.1}], TrainingStage("iea", 1))

    first, second, third = learner(), learner(), learner()
    scaler = first.accelerator.scaler
    scaler.scale(torch.tensor(1.0))
    scaler.update(8.0)
    second.restore(first.scaler_state())
    third.restore(first.state())
    assert [one.accelerator.scaler.get_scale() for one in (second, third)] == [8.0, 8.0]


def test_personalising_in_half_precision_learns_what_full_precision_learns(base: Path) -> None:
    """The first step of Adam moves every weight by the rate: which way is its gradient's sign, lost where it is 0."""
    options = replace(TINY, steps=1)
    moved: dict[str, dict[str, torch.Tensor]] = {}
    for dtype in ("float32", "float16"):
        pipeline = load_pipeline.load(base, "cpu", dtype)
        with torch.no_grad():
            pipeline.unet.conv_out.weight.mul_(1e-4)  # gradients below what float16 can tell from 0
        bank = encode_views(pipeline, vary([subject()], 64, 2, np.random.default_rng(0)))
        net = make_personal(pipeline, faceid(), NAMES, options)
        before = {name: value.detach().clone() for name, value in net.named_parameters()}
        personalise(pipeline, net, bank, options)
        moved[dtype] = {name: value.detach() - before[name] for name, value in net.named_parameters()}
    for name, full in moved["float32"].items():
        agreed = (full.sign() == moved["float16"][name].sign()).float().mean()
        assert agreed > 0.9, name
