"""onnxruntime, which sends nothing home.

Since 1.32 its wheels report to Microsoft: looking at a photo would look up a host of theirs and leave a device's id and
a queue of events in the user's cache folder.
"""

from __future__ import annotations

import os
from types import ModuleType

from dp_adapter.errors import MissingDependencyError

# onnxruntime reads it once, when it is loaded; the second is that of albumentations, which insightface 0.7 imports and
# which asks for its newest version
QUIET = {"ORT_DISABLE_TELEMETRY": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}


def import_onnxruntime() -> ModuleType:
    """onnxruntime with its telemetry off; to be called before anything is imported that imports it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime", "Finding and comparing faces", "faces") from None
    onnxruntime.disable_telemetry_events()  # where another extension loaded it first, with its telemetry on
    return onnxruntime
