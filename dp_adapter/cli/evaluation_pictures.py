"""Makes the pictures of an evaluation, each once: kept under the digest of everything that decides it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_adapter.evaluation.protocol import Weights
from dp_adapter.generation import scene_of
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, Pipeline
from dp_adapter.identity.pictures.picture_files import Picture, load_picture
from dp_adapter.sampling import sample
from dp_adapter.session import Session
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import Checkpoint
from dp_adapter.weights.files import file_digest, open_weights
from dp_adapter.whole_files import write_whole

FORMAT = 1
"""Raised when the same request would make other pictures than before."""

_LEFT_OUT: dict[Weights, tuple[str, ...]] = {
    "whole": (),
    "no-blending": (".blending.", "gate."),
    "bare": (".blending.", "gate.", ".text."),
}


@dataclass(frozen=True, eq=False)
class Trial:
    """One finished picture, its file, and its share of the seconds that its batch took."""

    picture: Picture
    file: Path
    seconds: float


class EvaluationPictures:
    """Makes pictures with one base and one adapter, and keeps them in a folder.

    Args:
        base: the base model's files; adapter: the adapter's file.
        out: folder for pictures, and for copies of the adapter without its trained parts.
    """

    def __init__(self, session: Session, pipeline: Pipeline, base: Path, adapter: Path, out: Path) -> None:
        self._session = session
        self._pipeline = pipeline
        self.base = base_digest(base)
        self.adapter = adapter
        self.adapter_digest = file_digest(adapter)
        self.out = out
        self.sampled = 0
        """Pictures that were sampled, not found."""

    @property
    def checkpoint(self) -> Checkpoint:
        return self._session.checkpoint(str(self.adapter))

    @property
    def trained_parts(self) -> set[str]:
        """Which trained parts the adapter has: ``text`` (TCA), ``blending`` and ``gate`` (FFB)."""
        modules = [self.checkpoint.adapter, *self.checkpoint.adapter.sites]
        return {part for part in ("text", "blending", "gate") if any(getattr(one, part, None) for one in modules)}

    def model_file(self, weights: Weights) -> str:
        """Path of the adapter's file with these weights only; a copy is written where something is left out."""
        lacking = {name.strip(".") for name in _LEFT_OUT[weights]} & self.trained_parts
        if not lacking:
            return str(self.adapter)
        digest = self.adapter_digest[:16]
        path = self.out / "adapters" / f"{self.adapter.stem}_{weights}_{digest}.safetensors"
        if not path.is_file():
            _write_without(self.adapter, path, _LEFT_OUT[weights])
        return str(path)

    def make(self, settings: Settings, job: DiffusersJob) -> list[Trial]:
        """Makes the pictures of a job; those of an earlier run are read again.

        Raises:
            DPAdapterError: before sampling, what ``Session.prepare`` refuses.
        """
        files = [self._path_of(settings, job, job.seed + number) for number in range(job.batch)]
        if not all(file.is_file() for file in files):
            started = time.perf_counter()
            prepared = self._session.prepare(settings, scene_of(self._pipeline, job))
            pictures = sample(self._pipeline, prepared, job, roots=self._session.roots)
            seconds = (time.perf_counter() - started) / job.batch
            for file, picture in zip(files, pictures, strict=True):
                _write_picture(file, picture, seconds)
            self.sampled += job.batch
        return [Trial(load_picture(file), file, _read_seconds(file)) for file in files]

    def _path_of(self, settings: Settings, job: DiffusersJob, seed: int) -> Path:
        """Where a picture is kept: by everything that decides it, files in the request by their contents."""
        made = {name: value for name, value in vars(job).items() if name not in ("seed", "batch", "init", "mask")}
        facts: dict[str, Any] = {"format": FORMAT, "base": self.base, "seed": seed, "job": made}
        if settings.enabled:
            request = settings.to_dict()
            request["model"] = file_digest(Path(settings.model))
            for reference in request["references"]:
                reference["image"] = file_digest(Path(reference["image"]))
            facts["settings"] = request
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        return self.out / "pictures" / f"{digest[:24]}.png"


def base_digest(base: Path) -> str:
    """Digest of a base model: names, sizes, and the first and last MiB of every file, as whole bases are large."""
    sha = hashlib.sha256()
    files = sorted(path for path in base.rglob("*") if path.is_file()) if base.is_dir() else [base]
    for file in files:
        size = file.stat().st_size
        sha.update(f"{file.relative_to(base) if base.is_dir() else file.suffix} {size}\n".encode())
        with file.open("rb") as stream:
            sha.update(stream.read(2**20))
            stream.seek(max(size - 2**20, 0))
            sha.update(stream.read(2**20))
    return sha.hexdigest()


def _write_without(source: Path, target: Path, parts: Sequence[str]) -> None:
    from safetensors.torch import save_file

    file = open_weights(source)
    kept = {key: tensor.contiguous() for key, tensor in file.tensors.items() if not any(part in key for part in parts)}
    with write_whole(target) as beside:
        save_file(kept, str(beside), metadata=dict(file.metadata))


def _write_picture(file: Path, picture: Picture, seconds: float) -> None:
    """Writes the whole file or nothing, so that a run that was interrupted leaves no half picture."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("seconds", f"{seconds:.4f}")
    with write_whole(file) as beside:
        Image.fromarray(picture).save(beside, format="PNG", pnginfo=info)


def _read_seconds(file: Path) -> float:
    from PIL import Image

    with Image.open(file) as picture:
        return float(picture.info["seconds"])
