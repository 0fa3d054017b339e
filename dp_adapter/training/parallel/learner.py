"""One stage's objective and optimiser on one or many processes: forward, backward, step, and the optimiser's state.

What is trained is small, and every process holds it whole; so weights, running average and checkpoints are the same for
all ways to spread a run. What FSDP spreads is the frozen UNet (``fsdp``).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from dp_adapter.training.config import TrainingStage
from dp_adapter.training.objective import Objective, ObjectiveInputs


class Learner:
    """The objective as accelerate wraps it: alone, or in DDP, which averages the gradients.

    Args:
        accelerator: of accelerate.
        groups: of parameters with their ``lr``, as a torch optimiser takes them.
    """

    def __init__(
        self, accelerator: Any, objective: Objective, groups: list[dict[str, Any]], stage: TrainingStage
    ) -> None:
        self.accelerator, self._stage = accelerator, stage
        accelerator.gradient_accumulation_steps = stage.accumulate
        accelerator.step = 0
        initial = [group["lr"] for group in groups]
        optimizer = torch.optim.AdamW(groups, weight_decay=stage.weight_decay)
        self.model, self.optimizer = self._prepare(objective, optimizer)
        self._initial = initial

    def _prepare(self, objective: Objective, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        return self.accelerator.prepare(objective, optimizer)

    def set_rate(self, factor: float) -> None:
        """Sets the learning rates of the next steps to a share of the initial ones."""
        for group, initial in zip(self.optimizer.param_groups, self._initial, strict=True):
            group["lr"] = initial * factor

    def learn(self, inputs: ObjectiveInputs) -> dict[str, Tensor]:
        """Runs forward and backward once; the last pass of a step moves the weights. Returns the losses."""
        accelerator = self.accelerator
        with accelerator.accumulate(self.model):
            terms = self._forward(inputs)
            accelerator.backward(terms["loss"])
            if accelerator.sync_gradients:
                self._finish_gradients()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return terms

    def _forward(self, inputs: ObjectiveInputs) -> dict[str, Tensor]:
        return cast("dict[str, Tensor]", self.model(inputs))

    def _finish_gradients(self) -> None:
        """Clips the gradients, between the last backward of a step and the optimiser's step."""
        if self._stage.clip:
            self.accelerator.unscale_gradients()
            nn.utils.clip_grad_norm_(self._parameters, self._stage.clip)

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [one for group in self.optimizer.param_groups for one in group["params"]]

    def state(self) -> dict[str, Any]:
        """The optimiser's and fp16's scaler's state, for ``restore``; to be called in every process."""
        return {"optimizer": self.optimizer.state_dict(), **self.scaler_state()}

    def scaler_state(self) -> dict[str, Any]:
        """The state of fp16's scaler, which the next stage keeps, though its optimiser is new."""
        scaler = self.accelerator.scaler
        return {"scaler": scaler.state_dict()} if scaler else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from ``state`` or ``scaler_state``. Raises what torch does, or ValueError, where it is of others."""
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
            for one in self._parameters:
                for name, value in self.optimizer.state[one].items():
                    if isinstance(value, Tensor) and value.ndim and value.shape != one.shape:
                        raise ValueError(f"{name} is {list(value.shape)}, its weights {list(one.shape)}")
        if state.get("scaler") and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])


class ShardedLearner(Learner):
    """Beside a UNet that FSDP has spread: autocast by accelerate, the adapter's gradients averaged here.

    accelerate would spread the adapter, too: it wraps the whole of what it prepares. But then nothing that reads the
    adapter between two steps (the running average, the files, the sample grids) would find it.
    """

    def _prepare(self, objective: Objective, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        return objective, self.accelerator.prepare_optimizer(optimizer)

    def _forward(self, inputs: ObjectiveInputs) -> dict[str, Tensor]:
        with self.accelerator.autocast():
            return super()._forward(inputs)

    def _finish_gradients(self) -> None:
        """Averages the gradients over the processes, in one exchange; where no loss reached they are 0, as in DDP."""
        for one in self._parameters:
            if one.grad is None:
                one.grad = torch.zeros_like(one)
        gradients = [cast(Tensor, one.grad) for one in self._parameters]
        mean: Tensor = self.accelerator.reduce(torch.cat([one.flatten() for one in gradients]), "mean")
        parts = torch.split(mean, [one.numel() for one in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        super()._finish_gradients()
