"""The files that a request names: adapters and size companions, each read once while it stays unchanged."""

from __future__ import annotations

from dp_adapter.cache import Cache
from dp_adapter.core.res_adapter import SizeCompanion
from dp_adapter.errors import SettingsError, WeightsError
from dp_adapter.settings import Companion
from dp_adapter.weights import formats, res_adapter
from dp_adapter.weights.checkpoint import BASE_NAMES, Base, Checkpoint
from dp_adapter.weights.library import Library
from dp_adapter.weights.res_adapter import ResAdapter


class LoadedModels:
    """
    Args:
        checkpoints: how many adapters stay loaded; checkpoints_mb: as long as their files have no more MB together.
    """

    def __init__(self, library: Library, checkpoints: int, checkpoints_mb: int) -> None:
        self._library = library
        self._checkpoints: Cache[Checkpoint] = Cache(checkpoints, checkpoints_mb * 2**20)
        self._companions: Cache[ResAdapter] = Cache(1)

    def forget(self) -> None:
        self._checkpoints.clear()
        self._companions.clear()

    def checkpoint(self, name: str) -> Checkpoint:
        """The adapter file of this name.

        Raises:
            WeightsError: there is no such file, or it is not an adapter.
        """
        path = self._library.resolve(name)
        stat = path.stat()
        key = path, stat.st_size, stat.st_mtime_ns
        return self._checkpoints.get(key, lambda: formats.read(path), stat.st_size)

    def is_personal(self, name: str) -> bool:
        """Whether an adapter is a personalised identity, which takes no photo."""
        try:
            return self.checkpoint(name).personal
        except WeightsError:
            return False

    def companion(self, asked: Companion, base: Base) -> tuple[SizeCompanion, float] | None:
        """The ResAdapter that was asked for, and its weight.

        Raises:
            WeightsError: there is none of this name.
            SettingsError: it is made for another base.
        """
        if not asked.model or asked.weight == 0:
            return None
        path = self._library.folder_or_file(asked.model)
        found = self._companions.get((path, path.stat().st_mtime_ns), lambda: res_adapter.read(path))
        if found.base != base:
            raise SettingsError(
                "companion.model",
                f"{path.name} is made for {BASE_NAMES[found.base]}, the loaded checkpoint is {BASE_NAMES[base]}",
                "Choose a ResAdapter for this base, or none.",
            )
        return found.companion, asked.weight


def require_base(checkpoint: Checkpoint, base: Base, field: str) -> None:
    """Raises SettingsError for a field whose adapter is made for another base than the loaded one."""
    if checkpoint.base != base:
        raise SettingsError(
            field,
            f"{checkpoint.path.name} is made for {BASE_NAMES[checkpoint.base]}, the loaded checkpoint is "
            f"{BASE_NAMES[base]}",
            "Choose an adapter for this base, or another checkpoint.",
        )
