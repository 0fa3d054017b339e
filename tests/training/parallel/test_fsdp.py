"""FSDP and DeepSpeed by accelerate's configuration, as far as one process on a CPU can tell."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator  # pyright: ignore[reportMissingTypeStubs]
from accelerate.state import AcceleratorState  # pyright: ignore[reportMissingTypeStubs]
from accelerate.utils import DeepSpeedPlugin  # pyright: ignore[reportMissingTypeStubs]
from torch import distributed

from dp_adapter.errors import TrainingError
from dp_adapter.training.config import Config, from_tables
from dp_adapter.training.parallel import deepspeed, fsdp
from dp_adapter.training.parallel.stopping import TrainingStopped
from dp_adapter.training.train import train
from dp_adapter.weights.formats import read


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What ``accelerate launch --use_fsdp --fsdp_version 2 --num_processes 1`` tells a process."""
    reset()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    told |= {"OMP_NUM_THREADS": 1, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": 2}
    told |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    yield monkeypatch
    if distributed.is_initialized():
        distributed.destroy_process_group()
    reset()


def reset() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read(path).adapter.state_dict()


def test_a_spread_unet_trains_the_same_adapter_and_is_resumed(
    tables: dict[str, Any], tmp_path: Path, launched: pytest.MonkeyPatch
) -> None:
    tables |= {"device": "cpu", "gradient_checkpointing": True, "stage": [tables["stage"][2]]}
    tables["watch"] |= {"samples": 1, "sample_steps": 1}
    spread = from_tables(tables)
    stop_after_one(spread)
    done = train(spread, resume=True)
    distributed.destroy_process_group()
    reset()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_FSDP"):
        launched.delenv(name)
    whole = train(from_tables({**tables, "out": str(tmp_path / "whole")}))
    one, other = weights(done), weights(whole)
    assert one.keys() == other.keys()
    # Not to the bit: gathered weights lie elsewhere in memory, and AdamW's first steps make much of small gradients.
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-3
    assert all(list(path.parent.glob("samples/*.png")) for path in (done, whole))


def stop_after_one(config: Config) -> None:
    import os
    import signal

    def told(sentence: str) -> None:
        if " 1/" in sentence:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped):
        train(config, log=told)


def test_what_fsdp_cannot_do_here_is_said(launched: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    launched.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(TrainingError, match="fsdp_offload_params"):
        fsdp.find_plugin(accelerator)
    launched.setenv("FSDP_VERSION", "1")
    launched.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # FSDP 1 has it on GPUs alone
    with pytest.raises(TrainingError, match="Set fsdp_version to 2"):
        fsdp.find_plugin(accelerator)


def test_what_deepspeed_cannot_do_here_is_said(tables: dict[str, Any]) -> None:
    def require(plugin: Any, **changes: Any) -> None:
        deepspeed.require(
            SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)), from_tables({**tables, **changes})
        )

    fits = DeepSpeedPlugin(zero_stage=2)
    require(fits, precision="bf16")
    with pytest.raises(TrainingError, match="bf16 or no"):
        require(fits, precision="fp16")
    with pytest.raises(TrainingError, match=r"stage 3.*take FSDP"):
        require(DeepSpeedPlugin(zero_stage=3))
    with pytest.raises(TrainingError, match="optimiser on cpu"):
        require(DeepSpeedPlugin(zero_stage=2, offload_optimizer_device="cpu"))
    fits.deepspeed_config["bf16"] = {"enabled": True}
    with pytest.raises(TrainingError, match="halve"):
        require(fits)
