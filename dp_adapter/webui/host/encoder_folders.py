"""Where this WebUI's extensions keep encoders that can be used here, too."""

from __future__ import annotations

from pathlib import Path

from dp_adapter.webui.host import compat


def find_encoder_folders() -> list[Path]:
    """Folders with ``clip_vision`` and ``insightface`` in them, or with .safetensors of towers: those that are there.

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
