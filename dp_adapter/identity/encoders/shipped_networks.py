"""Small networks that come with the extension, and how they are run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dp_adapter.errors import CatalogError, MissingDependencyError
from dp_adapter.identity.encoders.onnx_runtime import import_onnxruntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MODELS = Path(__file__).parents[3] / "models"
YUNET = "face_detection_yunet_2023mar.onnx"
SFACE = "face_recognition_sface_2021dec_int8bq.onnx"
SELFIE = "selfie_multiclass_256x256_fp16.onnx"
PREVIEW = "preview_faces.onnx"
CPU = ("CPUExecutionProvider",)


def shipped_path(name: str) -> Path:
    """Path of a network file in the extension's ``models`` folder.

    Raises:
        CatalogError: the file is not there, or is a Git LFS pointer or otherwise cut short.
    """
    path = MODELS / name
    if not path.is_file():
        raise CatalogError(
            f"The file {name}, which comes with DP-Adapter, is missing from {MODELS}",
            "Restore it from the repository's models folder, or reinstall the extension.",
        )
    if path.stat().st_size < 100_000:
        raise CatalogError(
            f"The file {path} is cut short ({path.stat().st_size} bytes)",
            "Restore it from the repository's models folder, or reinstall the extension.",
        )
    return path


def providers_for(device: str) -> tuple[str, ...]:
    """onnxruntime's providers for a device: the GPU's where this onnxruntime has them, else the CPU's alone."""
    if not device.startswith("cuda"):
        return CPU
    try:
        onnxruntime = import_onnxruntime()
    except MissingDependencyError:
        return CPU  # said by whoever needs it
    gpu = "CUDAExecutionProvider"
    return (gpu, *CPU) if gpu in onnxruntime.get_available_providers() else CPU


def open_network(path: Path, providers: Sequence[str] = CPU, threads: int = 0) -> InferenceSession:
    """A quiet onnxruntime session on a file; `providers` in order of preference, `threads` 0 for all cores.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        CatalogError: the file is no network, or a provider is not in this onnxruntime build.
    """
    onnxruntime = import_onnxruntime()
    absent = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if absent:
        raise CatalogError(
            f"onnxruntime has no {', '.join(absent)}; it has {', '.join(onnxruntime.get_available_providers())}",
            "Choose one of those, or install the onnxruntime build for your device.",
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # the shipped files cause harmless warnings about unused constants
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # unpacks SFace's int8 once, not at every run
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime's own exceptions share no base of their own
        raise CatalogError(
            f"onnxruntime {onnxruntime.__version__} cannot read {path}: {error}",
            "Restore the file if it is damaged, or upgrade onnxruntime.",
        ) from error
