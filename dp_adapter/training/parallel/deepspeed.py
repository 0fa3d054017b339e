"""DeepSpeed's ZeRO 1 and 2 as accelerate carries them: AdamW's state, and in 2 the gradients, split over the processes.

DeepSpeed computes in float32 here, so the adapter stays whole and in float32 in every process; the run's precision is
autocast's, as without DeepSpeed. Not run by this project: accelerate starts DeepSpeed on accelerators alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from dp_adapter.errors import TrainingError
from dp_adapter.training.base_model import DTYPES
from dp_adapter.training.config import Config
from dp_adapter.training.objective import Objective
from dp_adapter.training.parallel.learner import Learner

_STAGES = (1, 2)


def require(accelerator: Any, config: Config) -> None:
    """Raises TrainingError where accelerate is configured for a DeepSpeed that cannot be trained with here."""
    plugin = accelerator.state.deepspeed_plugin
    tables: dict[str, Any] = plugin.deepspeed_config
    if plugin.zero_stage not in _STAGES:
        problem = f"accelerate is configured for ZeRO stage {plugin.zero_stage}"
        if plugin.zero_stage == 3:
            problem += ", which splits the adapter's weights, and the pathways read them outside of their modules"
        raise TrainingError(problem, "Set zero_stage to 1 or 2; to split the UNet take FSDP, for neither plain DDP.")
    offloaded = tables.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
    if offloaded != "none":
        problem = f"DeepSpeed is configured to keep the optimiser on {offloaded}, in an optimiser of its own"
        raise TrainingError(problem, "Set offload_optimizer_device to none; what is trained is small.")
    if config.precision == "fp16":
        raise TrainingError("fp16 needs DeepSpeed's own loss scaling, which halves the weights", "Take bf16 or no.")
    for name in ("bf16", "fp16"):
        if tables.get(name, {}).get("enabled") is True:
            problem = f"DeepSpeed's configuration enables {name}, which would halve the trained weights"
            raise TrainingError(problem, f'Leave {name} out of it, and set precision = "bf16" in the run.')


class ZeroLearner(Learner):
    """DeepSpeed's engine: its backward averages the gradients, clips them and moves the weights."""

    def _prepare(self, objective: Objective, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        stage, dtype = self._stage, next(objective.adapted.unet.parameters()).dtype
        tables: dict[str, Any] = self.accelerator.state.deepspeed_plugin.deepspeed_config
        tables["train_micro_batch_size_per_gpu"] = stage.batch
        tables["gradient_accumulation_steps"] = stage.accumulate
        tables["train_batch_size"] = stage.batch * stage.accumulate * self.accelerator.num_processes
        tables["gradient_clipping"] = stage.clip
        if dtype in (DTYPES["bf16"], DTYPES["fp16"]):
            # Inside of the engine's forward, which turns off every autocast around it.
            autocast = torch.autocast(self.accelerator.device.type, dtype)
            objective.forward = autocast(objective.forward)
        return super()._prepare(objective, optimizer)

    def _finish_gradients(self) -> None:
        """Does nothing: the engine averages and clips in ``accelerator.backward``."""

    @property
    def _own_optimizer(self) -> torch.optim.Optimizer:
        """torch's optimiser inside of DeepSpeed's: of this process's part of the weights, made flat."""
        return self.optimizer.optimizer.optimizer

    def state(self) -> dict[str, Any]:
        from accelerate.utils import gather_object  # pyright: ignore[reportMissingTypeStubs]

        return {"parts": cast("list[Any]", gather_object([_move_to_cpu(self._own_optimizer.state_dict())]))}

    def restore(self, state: dict[str, Any]) -> None:
        """Every process takes its own part; a run goes on with as many as it was begun with."""
        if "parts" in state:
            self._own_optimizer.load_state_dict(state["parts"][self.accelerator.process_index])


def _move_to_cpu(state: dict[str, Any]) -> dict[str, Any]:
    moved = {
        index: {name: one.cpu() if isinstance(one, torch.Tensor) else one for name, one in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": moved}
