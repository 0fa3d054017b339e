"""The small base's files in a WebUI: what must lie beside a checkpoint of other widths than SD1.5's.

AUTOMATIC1111 and Forge build their networks from configurations of their own, unless told otherwise:

* AUTOMATIC1111@82a973c0 ``modules/sd_models_config.py`` reads ``NAME.yaml`` beside ``NAME.safetensors``: UNet and VAE.
  The text encoder is ldm's ``FrozenCLIPEmbedder``, whose ``version`` may be a folder with a configuration and a
  tokenizer; absolute, as it is looked up from wherever the WebUI was started. Nothing of the extension is needed.
* Forge reads no yaml for that; the extension leads it to the folder ``NAME`` (``webui/forge_widths.py``).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from dp_adapter.errors import HostError
from dp_adapter.hosts.clip_tokenizer import write_tokenizer

NAME = "dp_small_base"
ADAPTER = f"{NAME}_adapter.safetensors"
SHIPPED = Path(__file__).parents[2] / "models" / "demo"


def install(webui: Path, shipped: Path = SHIPPED) -> list[Path]:
    """Puts the small base into a WebUI's folder of checkpoints; what is there under its name is replaced.

    Args:
        webui: the WebUI's own folder, or another folder in which it looks for checkpoints.
        shipped: folder with ``NAME.safetensors`` and ``NAME``, as ``tools/small_base/export.py`` writes it.

    Returns:
        The checkpoint, its yaml, the folder of its configurations and, in a WebUI's own folder, the adapter.

    Raises:
        HostError: no such folder, or the small base is not here.
    """
    folder = checkpoints_of(webui).resolve()
    checkpoint, configs = folder / f"{NAME}.safetensors", folder / NAME
    if not (shipped / checkpoint.name).is_file() or not (shipped / NAME).is_dir():
        raise HostError(f"The small base is not in {shipped}", "Get the whole repository, with models/demo.")
    shutil.copytree(shipped / NAME, configs, dirs_exist_ok=True)
    (configs / "tokenizer").mkdir(exist_ok=True)
    write_tokenizer(configs / "tokenizer")
    # One folder for both, since ldm takes the text encoder and the tokenizer from one place.
    shutil.copyfile(configs / "text_encoder" / "config.json", configs / "tokenizer" / "config.json")
    yaml = folder / f"{NAME}.yaml"
    # JSON is YAML, and needs no package to be written.
    yaml.write_text(json.dumps(ldm_config(configs), indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(shipped / checkpoint.name, checkpoint)
    adapter = webui.resolve() / "models" / "dp_adapter" / ADAPTER
    if folder == webui.resolve() or not (shipped / ADAPTER).is_file():
        return [checkpoint, yaml, configs]
    adapter.parent.mkdir(exist_ok=True)
    shutil.copyfile(shipped / ADAPTER, adapter)
    return [checkpoint, yaml, configs, adapter]


def checkpoints_of(webui: Path) -> Path:
    """Where a WebUI looks for checkpoints, from its own folder; any other folder is taken for the place itself.

    Raises:
        HostError: no such folder.
    """
    if not webui.is_dir():
        raise HostError(f"There is no folder {webui}", "Give the WebUI's folder.")
    usual = webui / "models" / "Stable-diffusion"
    return usual if usual.is_dir() else webui


def ldm_config(configs: Path) -> dict[str, Any]:
    """The model as CompVis' ``v1-inference.yaml`` describes it, from diffusers' configurations in a folder.

    Raises:
        HostError: it cannot be described so.
    """
    unet, vae, schedule = (
        json.loads((configs / name).read_text(encoding="utf-8"))
        for name in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    )
    params: dict[str, Any] = {
        "linear_start": schedule["beta_start"],
        "linear_end": schedule["beta_end"],
        "timesteps": schedule["num_train_timesteps"],
        "num_timesteps_cond": 1,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": unet["sample_size"],
        "channels": vae["latent_channels"],
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "scale_factor": vae["scaling_factor"],
        "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": _unet(unet)},
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": _vae(vae)},
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": str(configs / "tokenizer")},
        },
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def _unet(config: dict[str, Any]) -> dict[str, Any]:
    widths, heads = config["block_out_channels"], config["attention_head_dim"]  # that name means heads, in diffusers
    sizes = {width / number for width, number in zip(widths, heads, strict=True)}
    if len(sizes) > 1:
        raise HostError("The UNet's heads are not all of one size", "Train it with heads in proportion to its widths.")
    return {
        "image_size": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "attention_resolutions": [2**i for i, kind in enumerate(config["down_block_types"]) if "CrossAttn" in kind],
        "num_res_blocks": config["layers_per_block"],
        "channel_mult": [width // widths[0] for width in widths],
        "num_head_channels": int(sizes.pop()),
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": config["cross_attention_dim"],
        "use_checkpoint": False,
        "legacy": False,
    }


def _vae(config: dict[str, Any]) -> dict[str, Any]:
    widths = config["block_out_channels"]
    return {
        "embed_dim": config["latent_channels"],
        "ddconfig": {
            "double_z": True,
            "z_channels": config["latent_channels"],
            "resolution": config["sample_size"],
            "in_channels": config["in_channels"],
            "out_ch": config["out_channels"],
            "ch": widths[0],
            "ch_mult": [width // widths[0] for width in widths],
            "num_res_blocks": config["layers_per_block"],
            "attn_resolutions": [],
            "dropout": 0.0,
        },
        "lossconfig": {"target": "torch.nn.Identity"},
    }
