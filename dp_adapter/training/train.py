"""The training loop, from the configuration to the finished file; read it from top to bottom.

All random numbers of step s of a stage are a function of the seed, the stage, s, the pass and the process. So there is
no state of random numbers, and a run that was interrupted ends with the same bits as one that was not.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dp_adapter import __version__
from dp_adapter.core.adapter import Adapter
from dp_adapter.core.regions.region_masks import GATE_POWERS
from dp_adapter.errors import TrainingError
from dp_adapter.hosts.attach.diffusers import sites_of
from dp_adapter.training import base_model, run_checkpoint, training_stages
from dp_adapter.training.config import Config, TrainingStage, to_tables
from dp_adapter.training.data.batches import Batch, Examples, cache_latents, iterate_batches
from dp_adapter.training.data.shards import Shards
from dp_adapter.training.differentiable_faces import DifferentiableSFace
from dp_adapter.training.initial_adapter import read_initial_adapter
from dp_adapter.training.losses import EDIT_EVERY, EDIT_TIMESTEPS, noisy_latents
from dp_adapter.training.monitor.run_monitor import RunMonitor
from dp_adapter.training.objective import CaptionEdit, Objective, ObjectiveInputs
from dp_adapter.training.parallel import fsdp
from dp_adapter.training.parallel.deepspeed import ZeroLearner
from dp_adapter.training.parallel.devices import make_accelerator, synchronise
from dp_adapter.training.parallel.learner import Learner, ShardedLearner
from dp_adapter.training.parallel.stopping import TrainingStopped, any_process, catch_stop_signals
from dp_adapter.training.run_checkpoint import Progress
from dp_adapter.training.unet.adapted_unet import AdaptedUNet

RESULT, RAW = "adapter.safetensors", "adapter-last.safetensors"
"""The finished files in ``out``: the running average, and the last weights."""

WEIGHTS, AVERAGE = "adapter.safetensors", "ema.safetensors"
"""The same in a checkpoint."""

_WARM_UP = (
    10  # the running average follows faster at first: decay (1 + n) / (10 + n), as in EMA implementations since TF
)


def train(config: Config, *, resume: bool = False, log: Callable[[str], None] = lambda _: None) -> Path:
    """Runs all stages of a configuration.

    Args:
        resume: go on from the latest checkpoint in ``config.out``.
        log: is called with the progress in sentences.

    Returns:
        The finished adapter, which the extension reads.

    Raises:
        TrainingError: data are missing or damaged, the folder holds another run, or a loss is no number.
        HostError: the base model cannot be opened.
        TrainingStopped: Ctrl-C or a termination signal; there is a checkpoint to resume from.
    """
    out = config.folder
    found = run_checkpoint.find_latest(out)
    if found and not resume:
        raise TrainingError(f"{out} holds a run already", "Go on with --resume, or choose another out.")
    accelerator = make_accelerator(config)
    plugin = fsdp.find_plugin(accelerator)
    progress = run_checkpoint.read_progress(found, config, accelerator.num_processes) if found else None
    out.mkdir(parents=True, exist_ok=True)
    base = base_model.load(config, accelerator.device)
    run = TrainingRun(config, accelerator, base, Shards(config.data.shards), log, plugin)
    if found and progress:
        run.restore(found, progress)
        log(f"Going on after step {progress.total} of {config.steps}.")
    with catch_stop_signals() as stop_requested:
        while run.state.stage < len(config.stage):
            run.train_stage(stop_requested, found if found and progress and run.state.total == progress.total else None)
    return run.finish()


class TrainingRun:
    """One run of training.

    Args:
        accelerator: of accelerate; says device, precision and processes.
        plugin: accelerate's for FSDP, which spreads the base's UNet; None leaves it whole.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Any,
        base: base_model.FrozenBase,
        shards: Shards,
        log: Callable[[str], None],
        plugin: Any = None,
    ) -> None:
        self.config, self.accelerator, self.base, self.shards = config, accelerator, base, shards
        self.sites = sites_of(base.unet)
        examples = Examples(shards, config.data, config.adapter, (config.seed, 0))
        width = examples.features(0).shape[-1]
        first = training_stages.make_first_adapter(config, base.unet, base.family, width)
        self.adapter = first.to(accelerator.device)
        self.average = copy.deepcopy(self.adapter)
        self.state = Progress(0, 0, 0, accelerator.num_processes, _now(), 0.0, to_tables(config))
        self._cached = examples.cached
        self._adapted: AdaptedUNet | None = None
        if config.data.cache_latents:
            with accelerator.main_process_first():
                cache_latents(examples, base.encode_moments, config.folder, base.digest_vae())
        faces = any(stage.losses.identity for stage in config.stage)
        self._faces = DifferentiableSFace().to(accelerator.device).requires_grad_(False).eval() if faces else None
        if plugin is not None:  # after the adapter took its first weights from the UNet
            fsdp.shard(base.unet, accelerator, plugin)
        deepspeed = accelerator.distributed_type.value == "DEEPSPEED"
        self._learner_type = ZeroLearner if deepspeed else Learner if plugin is None else ShardedLearner
        self.watch = RunMonitor(config, accelerator, base, shards, log, plugin is not None)

    # --- one stage -------------------------------------------------------------------------------------------------

    def train_stage(self, stop_requested: Callable[[], bool], resume_from: Path | None) -> None:
        """Trains the rest of the current stage.

        Args:
            resume_from: a checkpoint from which the optimiser's state is taken; None starts with a new optimiser.

        Raises:
            TrainingStopped, TrainingError: see ``train``.
        """
        state, stage, accelerator = self.state, self.config.stage[self.state.stage], self.accelerator
        learner, names = self._prepare_stage(stage)
        if resume_from:
            run_checkpoint.restore_optimizer(resume_from, learner.restore)
        passes = stage.accumulate
        examples = Examples(self.shards, self.config.data, self.config.adapter, (self.config.seed, state.stage))
        examples.cached = self._cached
        source = iterate_batches(
            examples,
            stage.batch,
            state.step * passes,
            (stage.steps - state.step) * passes,
            accelerator.process_index,
            accelerator.num_processes,
            self.config.data.workers,
        )
        stop = False
        while state.step < stage.steps:
            started = time.perf_counter()
            learner.set_rate(rate(stage, state.step))
            for number in range(passes):
                inputs = self.draw_inputs(next(source).to(accelerator.device), stage, number)
                self.watch.add_losses(learner.learn(inputs))
            state.step, state.total = state.step + 1, state.total + 1
            self._update_average(names)
            state.seconds += time.perf_counter() - started
            stop = self._end_step(stage, learner, stop_requested)
            if stop:
                break
        if state.step == stage.steps:
            state.stage, state.step = state.stage + 1, 0
            self._save(learner.scaler_state())
            accelerator.free_memory()
        if stop and state.stage < len(self.config.stage):
            self.watch.close()
            raise TrainingStopped(f"Stopped after step {state.total} of {self.config.steps}; go on with --resume")

    def _prepare_stage(self, stage: TrainingStage) -> tuple[Learner, list[str]]:
        """Makes the stage's learner, and returns it with the names of the trained parameters."""
        config = self.config
        adapter, self.average = (
            training_stages.add_stage_pathways(one, config, self.state.stage).to(self.accelerator.device)
            for one in (self.adapter, self.average)
        )
        trained = training_stages.unfreeze(adapter, stage.kind)
        if self._adapted:
            self._adapted.release()
        self._adapted = AdaptedUNet(
            self.base.unet,
            adapter,
            mode=config.adapter.mode,
            # A trained gate starts from M itself: from powers of M its first step would be a jump.
            powers=dict.fromkeys(GATE_POWERS, 1.0) if any(one.kind == "ffb" for one in config.stage) else GATE_POWERS,
        )
        objective = Objective(
            self._adapted, self.base, self.sites, stage.losses, self._faces, self._learner_type is ShardedLearner
        )
        objective.train()
        unet: Any = self.base.unet
        unet.train(unet.is_gradient_checkpointing)  # diffusers before 0.33 checkpoints in training mode only
        slow = {name for name in trained if stage.kind == "ffb" and training_stages.part_of(name) == "iea"}
        groups = [
            {"params": [trained[name] for name in trained if (name in slow) == slower], "lr": lr}
            for slower, lr in ((False, stage.lr), (True, stage.lr * stage.iea_lr))
        ]
        learner = self._learner_type(self.accelerator, objective, [group for group in groups if group["params"]], stage)
        return learner, list(trained)

    def draw_inputs(self, batch: Batch, stage: TrainingStage, number: int) -> ObjectiveInputs:
        """Draws the noise, timesteps and other chances of one pass of this step for a batch.

        They are drawn on the CPU, so that they are the same on every device.
        """
        state, base, weights, device = self.state, self.base, stage.losses, self.accelerator.device
        key = (self.config.seed, state.stage, state.step, number, self.accelerator.process_index)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator().manual_seed(seed)
        moments = batch.moments if batch.moments is not None else base.encode_moments(cast(Tensor, batch.pixels))
        shape = moments[:, 0].shape

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator).to(device)

        def integers(low: int, high: int, count: int) -> Tensor:
            return torch.randint(low, high, (count,), generator=generator).to(device)

        def shares() -> Tensor:
            return torch.rand(len(batch), generator=generator).to(device)

        latents, noise = base.sample_latents(moments, normal(*shape)), normal(*shape)
        timesteps = integers(0, len(base.alphas), len(batch))
        side = self.config.data.resolution
        only_inside, text_on = shares() < weights.face_only, (shares() >= weights.text_off).float()
        edit = None
        if weights.edit and (state.step + 1) % EDIT_EVERY == 0:
            count = stage.edited_rows
            words = self.config.edits[int(integers(0, len(self.config.edits), 1))]
            plain, crop = batch.captions[:count], batch.size_and_crop[:count]
            at = integers(*EDIT_TIMESTEPS, count)
            edited = [f"{caption}, {words}" if caption else words for caption in plain]
            edit = CaptionEdit(
                noisy=noisy_latents(latents[:count], normal(count, *shape[1:]), base.alphas, at),
                timesteps=at,
                plain=base.encode_texts(plain, crop, side),
                edited=base.encode_texts(edited, crop, side),
            )
        return ObjectiveInputs(
            noisy=noisy_latents(latents, noise, base.alphas, timesteps),
            noise=noise,
            timesteps=timesteps,
            text=base.encode_texts(batch.captions, batch.size_and_crop, side),
            mask=batch.mask,
            features=batch.features,
            others=batch.others,
            with_identity=batch.with_identity,
            only_inside=only_inside,
            text_on=text_on if weights.text_off else None,
            points=batch.points,
            sface=batch.sface,
            edit=edit,
            seed=seed,
        )

    @torch.no_grad()
    def _update_average(self, names: list[str]) -> None:
        """Moves the running average towards the weights."""
        decay = min(self.config.ema, (1 + self.state.total) / (_WARM_UP + self.state.total)) if self.config.ema else 0.0
        for name in names:
            self.average.get_parameter(name).lerp_(self.adapter.get_parameter(name), 1 - decay)

    def _end_step(self, stage: TrainingStage, learner: Learner, stop_requested: Callable[[], bool]) -> bool:
        """Reports, draws samples and saves where they are due; returns whether to stop after this step."""
        state, plan = self.state, self.config.watch
        last = state.step == stage.steps
        due = last or (plan.checkpoint_every > 0 and state.total % plan.checkpoint_every == 0)
        if due or state.total % plan.every == 0:
            self._report(stage)
        if plan.samples_every and state.total % plan.samples_every == 0:
            self.watch.sample_grid(self.average, state.total)
            self.watch.write_report()
        stop = any_process(self.accelerator, stop_requested())
        if (due or stop) and not last:
            self._report(stage)  # raises where a loss is no number, so that no such weights are saved
            self._save(learner.state())
        return stop

    def _report(self, stage: TrainingStage) -> None:
        """Raises TrainingError where a loss since the last time is no number."""
        state, started = self.state, time.perf_counter()
        synchronise(
            self.accelerator.device
        )  # the loop's clock has stopped, but on a GPU the step is still being computed
        state.seconds += time.perf_counter() - started
        not_finite = self.watch.report_losses(
            stage, state.stage, state.total, rate(stage, state.step - 1), state.seconds
        )
        if not_finite:
            raise TrainingError(
                f"The loss is no number at step {state.total} ({not_finite})",
                "Lower lr, or set precision to bf16 or no, and go on from the last checkpoint with --resume.",
            )

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self, optimizer: Mapping[str, Any]) -> None:
        accelerator, out = self.accelerator, self.config.folder
        if accelerator.is_main_process:
            run_checkpoint.write(out, self.state, optimizer, self._write_weights, self.config.watch.keep)
        accelerator.wait_for_everyone()

    def _write_weights(self, folder: Path) -> None:
        for name, adapter in ((WEIGHTS, self.adapter), (AVERAGE, self.average)):
            self._write_adapter(folder / name, adapter)

    def restore(self, folder: Path, progress: Progress) -> None:
        """Takes the weights and the step from a checkpoint; ``train_stage`` reads the optimiser's state."""
        self.adapter, self.average = (
            read_initial_adapter(folder / name).adapter.to(self.accelerator.device) for name in (WEIGHTS, AVERAGE)
        )
        self.state = dataclasses.replace(progress, run=to_tables(self.config))
        self.watch.rewind(progress.total)

    # --- the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> Path:
        """Writes the adapters and the report; returns the averaged adapter's file."""
        out = self.config.folder
        if self.accelerator.is_main_process:
            self._write_adapter(out / RAW, self.adapter)
            self._write_adapter(out / RESULT, self.average)
        self.watch.sample_grid(self.average, self.state.total)
        self.watch.write_report()
        self.watch.close()
        self.accelerator.wait_for_everyone()
        return out / RESULT

    def _write_adapter(self, path: Path, adapter: Adapter) -> None:
        plan = self.config.adapter
        training_stages.save(path, adapter, self.base.family, plan.encoder, self._describe_training())

    def _describe_training(self) -> dict[str, Any]:
        """Facts about the training for an adapter file's metadata; JSON."""
        config, state = self.config, self.state
        stages = [dataclasses.asdict(stage) for stage in config.stage[: state.stage + 1]]
        return {
            "steps": state.total,
            "stages": stages,
            "base": self.base.name,
            "seed": config.seed,
            "ema": config.ema,
            "resolution": config.data.resolution,
            "data": {
                "shards": [path.name for path in self.shards.paths],
                "samples": len(self.shards),
                "people": len(self.shards.of_person),
            },
            "started": state.started,
            "written": _now(),
            "dp_adapter": __version__,
        }


def rate(stage: TrainingStage, step: int) -> float:
    """Factor on the learning rate at a step, from 0: a linear rise, then constant or half a cosine down to 0."""
    if step < stage.warmup:
        return (step + 1) / (stage.warmup + 1)
    if stage.schedule == "constant":
        return 1.0
    share = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * share))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
