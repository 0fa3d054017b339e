"""What all parts of the shell share: the one session of this process, and what it serves."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from dp_adapter.webui.host import compat, options
from dp_adapter.webui.host.controlnet import load_control

if TYPE_CHECKING:
    from dp_adapter.hosts.attach.sites import Base
    from dp_adapter.session import Session
    from dp_adapter.session.model_list import ModelListing

ROOT = Path(__file__).parents[3]  # of the extension


_MAKING = Lock()


def session() -> Session:
    """The session of this WebUI, made at first use. Requests may not name files outside the model folders."""
    with _MAKING:  # the panel's first events come at once, and a photo that another session keeps would be lost
        return _make_session()


@cache
def _make_session() -> Session:
    from dp_adapter.session import Session
    from dp_adapter.webui.host.restorers import list_restorers

    chosen = options.read()
    return Session(
        roots=[compat.models_folder()],
        paths_allowed=False,
        folders=find_model_folders(),
        checkpoints=chosen.checkpoints,
        photos_mb=chosen.photos_mb,
        restorers=list_restorers,
        encoder_folders=find_encoder_folders(),
        device=compat.encoder_device(),
        checkpoints_mb=chosen.checkpoints_mb,
    )


def known_models() -> ModelListing:
    """What is known of the files in the session's folders."""
    return _list_models(session())


@lru_cache(maxsize=1)
def _list_models(of: Session) -> ModelListing:
    from dp_adapter.session.model_list import ModelListing

    return ModelListing(of.library)


def release() -> None:
    """Gives back what was loaded; the next generation loads again."""
    if _make_session.cache_info().currsize:
        session().release()
    _load_control.cache_clear()


def forget() -> None:
    """Ends the session, dropped photos included; the next one follows the settings page as it is then."""
    release()
    _make_session.cache_clear()
    _list_models.cache_clear()


def control_model(path: Path) -> Any:
    """A ControlNet as the host loads it; the last one is kept.

    Raises:
        HostError: the host cannot load it.
    """
    stat = path.stat()
    return _load_control(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)
def _load_control(path: Path, _size: int, _modified: int) -> Any:
    return load_control(path)


def find_model_folders() -> list[Path]:
    """Folders with adapters besides ``models/dp_adapter``, ``models/ipadapter``, ``models/ControlNet``."""
    from modules import shared

    named = [getattr(shared.cmd_opts, name, None) or "" for name in ("dp_adapter_dir", "controlnet_dir")]
    named += [getattr(shared.opts, "control_net_models_path", ""), *options.read().model_dirs.splitlines()]
    controlnet = compat.models_folder().parent / "extensions" / "sd-webui-controlnet" / "models"
    return [*(Path(name.strip()) for name in named if name.strip()), controlnet, ROOT / "models"]


def find_encoder_folders() -> list[Path]:
    """Where this WebUI's extensions keep encoders that can be used here, too: the folders that are there.

    They have ``clip_vision`` and ``insightface`` in them, or .safetensors of towers.

    sd-webui-controlnet@56cec5b2 ``annotator/annotator_path.py``: its setting, its flag, or its own ``downloads``.
    Forge@dfdcbab6 ``modules_forge/shared.py``: its flag, or ``models/ControlNetPreprocessor``.
    """
    from modules import paths, shared

    models = compat.models_folder()
    data = Path(getattr(paths, "data_path", models.parent))  # what relative settings start from
    extensions = Path(getattr(paths, "extensions_dir", data / "extensions"))
    named = [
        shared.opts.data.get("control_net_modules_path"),
        getattr(shared.cmd_opts, "controlnet_annotator_models_path", None),
        getattr(shared.cmd_opts, "controlnet_preprocessor_models_dir", None),
    ]
    usual = [*sorted(extensions.glob("*controlnet*/annotator/downloads")), models / "ControlNetPreprocessor"]
    found = [*(data / str(name) for name in named if name), *usual]
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


def base_of(model: Any) -> Base:
    """Family of a loaded checkpoint.

    Raises:
        HostError: neither SD1.5 nor SDXL; says what is supported.
    """
    from dp_adapter.hosts.attach import ldm

    return ldm.base_of(compat.diffusion_model(model))


def base() -> Base | None:
    """Family of the loaded checkpoint; None where none is loaded or it is not supported."""
    from dp_adapter.errors import HostError

    model = compat.loaded_model()
    try:
        return None if model is None else base_of(model)
    except HostError:
        return None


def native_size(model: Any) -> int:
    """Side in px of the pictures that a loaded checkpoint was trained on."""
    from dp_adapter.hosts.pipelines import native_size as sizes

    file, base = compat.checkpoint_file(model), base_of(model)
    return sizes.OF_FAMILY[base] if file is None else sizes.of_file(file, base)


def base_of_file(name: str) -> Base | None:
    """Family of a checkpoint that is not loaded, by its title; None where its file cannot tell."""
    from modules import sd_models

    from dp_adapter.errors import HostError
    from dp_adapter.hosts.pipelines.single_file import inspect_file

    info = sd_models.get_closet_checkpoint_match(name)
    try:
        return None if info is None else inspect_file(Path(info.filename)).base
    except (HostError, OSError):
        return None
