"""The frozen UNet, spread over the processes by torch's FSDP2 as accelerate's configuration asks for it.

Each process keeps a share of every block and gathers a block when it is computed (``torch.distributed.fsdp``'s
``fully_shard``). Only what is frozen is spread: it needs no gradients, no optimiser and no checkpoint.
"""

from __future__ import annotations

import os
from typing import Any, cast

from torch import nn

from dp_adapter.errors import TrainingError


def find_plugin(accelerator: Any) -> Any | None:
    """accelerate's FSDP plugin where it is configured for FSDP, else None; on CPUs too, where accelerate has none.

    Raises:
        TrainingError: it is configured for FSDP 1 or for offloading.
    """
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and accelerator.distributed_type.value != "NO"
    if plugin is None and asked:
        from accelerate.utils import FullyShardedDataParallelPlugin  # pyright: ignore[reportMissingTypeStubs]

        plugin = FullyShardedDataParallelPlugin()  # it reads accelerate's configuration from the environment
    if plugin is None:
        return None
    if plugin.fsdp_version != 2:
        raise TrainingError("accelerate is configured for FSDP 1, which torch has replaced", "Set fsdp_version to 2.")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true":
        problem = "accelerate is configured to keep FSDP's parameters in main memory, which the sample grids cannot use"
        raise TrainingError(problem, "Set fsdp_offload_params to false.")
    # transformers would leave the text encoders empty in all processes but one, for FSDP to fill; they are not spread.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return plugin


def shard(unet: nn.Module, accelerator: Any, plugin: Any) -> None:
    """Spreads a frozen diffusers UNet in place; names of its modules stay.

    The blocks that are gathered one by one are those of ``fsdp_transformer_layer_cls_to_wrap``, else diffusers' own
    ``_no_split_modules``. Precision is autocast's, as without FSDP.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = plugin.transformer_cls_names_to_wrap or cast("list[str]", getattr(unet, "_no_split_modules", ()))
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    blocks = [module for module in unet.modules() if type(module).__name__ in names]
    for block in reversed(blocks):  # the inner ones first
        fully_shard(block, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward)
    fully_shard(unet, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward)
    if plugin.activation_checkpointing:
        cast(Any, unet).enable_gradient_checkpointing()
