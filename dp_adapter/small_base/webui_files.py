"""Installs the small base into a WebUI, with what must lie beside a checkpoint of other widths than SD1.5's.

The WebUIs build their networks from configurations of their own, unless told otherwise:

* AUTOMATIC1111@82a973c0 ``modules/sd_models_config.py`` reads ``NAME.yaml`` beside ``NAME.safetensors``: UNet and VAE.
  The text encoder is ldm's ``FrozenCLIPEmbedder``, whose ``version`` may be a folder with a configuration and a
  tokenizer; absolute, as it is looked up from wherever the WebUI was started. Nothing of the extension is needed.
* Forge, Forge neo, reForge and Forge classic know no other widths; the extension leads them to the folder ``NAME``
  (``webui/host/forge_widths.py``, ``webui/host/reforge_widths.py``). Without it they could not load the checkpoint.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from dp_adapter.errors import HostError
from dp_adapter.hosts.pipelines import ldm_config
from dp_adapter.hosts.pipelines.single_file import inspect_file
from dp_adapter.hosts.prompts.clip_tokenizer import write_tokenizer
from dp_adapter.whole_files import write_whole

NAME = "dp_small_base"
ADAPTER = f"{NAME}_adapter.safetensors"
SHIPPED = Path(__file__).parents[2] / "models" / "demo"
_CHECKPOINTS = "Stable-diffusion"
_GIVE = "give the folder in which it looks for checkpoints with --ckpt-dir"


def install(webui: Path | None, shipped: Path = SHIPPED, checkpoints: Path | None = None) -> list[Path]:
    """Puts the small base into a WebUI's folder of checkpoints; what is there under its name is replaced.

    Args:
        webui: the WebUI's own folder, its folder of models, or another folder with checkpoints.
        shipped: folder with ``NAME.safetensors`` and ``NAME``, as ``tools/small_base/export.py`` writes it.
        checkpoints: where the WebUI looks for checkpoints, if not in its own folder.

    Returns:
        The checkpoint, its yaml, the folder of its configurations and, where the WebUI looks for adapters, the adapter.

    Raises:
        HostError: no such folder, none of checkpoints, a WebUI that could not load it, or the small base is not here.
    """
    folder = find_checkpoints(webui) if checkpoints is None else _require_folder(checkpoints)
    _require_extension(folder if webui is None else webui)
    original = shipped / f"{NAME}.safetensors"
    if not original.is_file() or not (shipped / NAME).is_dir():
        raise HostError(f"The small base is not in {shipped}", "Get the whole repository, with models/demo.")
    inspect_file(original)  # whole, and no pointer to a file that git did not fetch
    models = find_adapters(folder, webui)
    folder = folder.resolve()
    checkpoint, configs, yaml = folder / original.name, folder / NAME, folder / f"{NAME}.yaml"
    shutil.copytree(shipped / NAME, configs, dirs_exist_ok=True)
    (configs / "tokenizer").mkdir(exist_ok=True)
    write_tokenizer(configs / "tokenizer")
    # One folder for both, since ldm takes the text encoder and the tokenizer from one place.
    shutil.copyfile(configs / "text_encoder" / "config.json", configs / "tokenizer" / "config.json")
    # JSON is YAML, and needs no package to be written.
    described = ldm_config.model(configs, configs / "tokenizer")
    yaml.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    _copy(original, checkpoint)
    if models is None or not (shipped / ADAPTER).is_file():
        return [checkpoint, yaml, configs]
    _copy(shipped / ADAPTER, models / ADAPTER)
    return [checkpoint, yaml, configs, models / ADAPTER]


def find_checkpoints(webui: Path | None) -> Path:
    """Where a WebUI looks for checkpoints, from its own folder or that of its models; or a folder with checkpoints.

    Raises:
        HostError: no such folder, or it is none of these.
    """
    folder = _require_folder(webui)
    for usual in (folder / "models" / _CHECKPOINTS, folder / _CHECKPOINTS):
        if usual.is_dir():
            return usual
    if _is_webui(folder):
        raise HostError(
            f"The WebUI in {folder} has no folder models/{_CHECKPOINTS}",
            f"Start it once, which makes the folder; if its models are elsewhere, {_GIVE}.",
        )
    if folder.name == _CHECKPOINTS or any(folder.glob("*.safetensors")) or any(folder.glob("*.ckpt")):
        return folder
    raise HostError(
        f"{folder} is neither a WebUI's folder nor one with checkpoints", f"Give the WebUI's folder, or {_GIVE}."
    )


def find_adapters(checkpoints: Path, webui: Path | None) -> Path | None:
    """Where the WebUI with these checkpoints looks for adapters; None where that cannot be told."""
    if webui is not None and (webui / "models").is_dir():
        return webui.resolve() / "models" / "dp_adapter"
    return checkpoints.resolve().parent / "dp_adapter" if checkpoints.name == _CHECKPOINTS else None


def _require_folder(folder: Path | None) -> Path:
    if folder is None or not folder.is_dir():
        raise HostError(f"There is no folder {folder or ''}".rstrip(), "Give the WebUI's folder.")
    return folder


def _is_webui(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("webui.py", "launch.py", "modules", "extensions"))


def _require_extension(folder: Path) -> None:
    """Requires the extension in the WebUI around a folder, if that is Forge or a relative.

    Raises:
        HostError: it is not there.
    """
    here = folder.absolute()
    root = next((one for one in (here, *here.parents) if (one / "modules_forge").is_dir()), None)
    if root is not None and not any(root.glob("extensions/*/dp_adapter/webui/host/reforge_widths.py")):
        raise HostError(
            f"The WebUI in {root} loads a checkpoint of these widths only with this version of DP-Adapter, which is "
            "not among its extensions",
            f"Put it into {root / 'extensions'} (or update it there), then install again.",
        )


def _copy(source: Path, target: Path) -> None:
    """A WebUI that looks meanwhile finds the whole file or none."""
    with write_whole(target) as beside:
        shutil.copyfile(source, beside)
