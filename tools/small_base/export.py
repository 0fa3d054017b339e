"""Exports the small base as it is shipped: one file in half precision, named as SD1.5, and its configurations.

    python -m tools.small_base.export DIFFUSERS_FOLDER models/demo --adapter RUN/adapter.safetensors

What WebUIs need besides depends on where it is put, so ``dp-adapter demo-base install`` writes that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.pipelines.single_file import USAGE
from dp_adapter.small_base.webui_files import NAME
from tools.small_base import ldm_names

PARTS = ("unet", "vae", "text_encoder")
CONFIGS = ("model_index.json", "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in PARTS))

METADATA = {
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
    "modelspec.title": "DP-Adapter's small base",
    "modelspec.description": "SD1.5's block layout, narrow, for 128 px pictures of composed scenes; trained "
    "from scratch on public domain portraits. Needs its configurations beside it: dp-adapter demo-base install.",
    "modelspec.license": "Apache-2.0",
    "modelspec.resolution": "128x128",
    "modelspec.prediction_type": "epsilon",
    "modelspec.data_type": "fp16",
}
"""Stability-AI/ModelSpec 1.0.0; WebUIs show it beside the checkpoint."""
MADE_FOR = {"width": 128, "height": 128, "guidance": 3, "clip_skip": 1}
"""The panel says it where the checkpoint is chosen. The guidance is what it was evaluated with; Forge neo skips a layer
of the text encoder unless told otherwise."""

README = """# The small base

{title}: {description}

`tools/small_base/` trains it, `python -m tools.small_base.export` writes this folder, and
[docs/small_base.md](../../docs/small_base.md) says how it is used. Adapters beside it are trained on it by
`dp-adapter train`.

Licence: {license}, as this repository. The portraits are in the public domain (works of the United States government).
The tokens are CLIP's (openai/CLIP, MIT).

| file | bytes | sha256 |
|---|---|---|
{rows}
"""


def export(folder: Path, out: Path, adapter: Path | None = None) -> Path:
    """Writes ``NAME.safetensors``, the folder ``NAME`` with the configurations and a README into ``out``.

    An adapter is written beside them, in half precision too, as ``NAME_adapter.safetensors``.

    Raises:
        ValueError: what diffusers reads from the file is not what was written.
    """
    pipeline = load_pipeline.load(folder, "cpu", "float32")
    state = ldm_names.unet(pipeline.unet) | ldm_names.vae(pipeline.vae)
    state |= ldm_names.clip(pipeline.text_encoder, "cond_stage_model.transformer.")
    state = {key: value.half().contiguous().clone() for key, value in state.items() if not key.endswith("position_ids")}
    for name in CONFIGS:
        target = out / NAME / name
        target.parent.mkdir(parents=True, exist_ok=True)
        config = _without_versions(json.loads((folder / name).read_text(encoding="utf-8")))
        target.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / NAME / USAGE).write_text(json.dumps(MADE_FOR, indent=2) + "\n", encoding="utf-8")
    path = out / f"{NAME}.safetensors"
    path.write_bytes(_sorted(save(state, METADATA)))
    _check(pipeline, load_pipeline.load(path, "cpu", "float32"))
    if adapter:
        _write_adapter(adapter, out / f"{NAME}_adapter.safetensors")
    facts = {key.removeprefix("modelspec."): value for key, value in METADATA.items()}
    rows = "\n".join(map(_row, sorted(out.glob("*.safetensors"))))
    (out / "README.md").write_text(README.format(rows=rows, **facts), encoding="utf-8")
    return path


def _write_adapter(adapter: Path, target: Path) -> None:
    with safe_open(str(adapter), "pt") as file:
        state = {key: file.get_tensor(key).half() for key in file.keys()}  # noqa: SIM118 - a file has no iterator
        target.write_bytes(_sorted(save(state, file.metadata())))


def _row(path: Path) -> str:
    return f"| `{path.name}` | {path.stat().st_size:,} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |"


def _sorted(file: bytes) -> bytes:
    """The same file with its metadata in order; safetensors writes them in any, and the checksum should not change."""
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + file[8 + length :]


def _without_versions(config: dict[str, Any]) -> dict[str, Any]:
    """Without what says only who wrote the file, and the numbers' size, which the file of weights has."""
    dropped = ("_diffusers_version", "_name_or_path", "transformers_version", "dtype", "torch_dtype")
    return {key: value for key, value in config.items() if key not in dropped}


def _check(written: Any, read: Any) -> None:
    for part in PARTS:
        one, other = (getattr(pipeline, part).state_dict() for pipeline in (written, read))
        wrong = [key for key in one.keys() | other.keys() if key not in one or key not in other]
        wrong += [key for key in one.keys() & other.keys() if not torch.equal(one[key].half(), other[key].half())]
        if wrong:
            raise ValueError(f"{part}: {len(wrong)} weights are not read as they were written, such as {wrong[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="as diffusers' save_pretrained writes it")
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapter", type=Path, help="adapter.safetensors of a training run on it")
    args = parser.parse_args()
    print(_row(export(args.folder, args.out, args.adapter)))


if __name__ == "__main__":
    main()
