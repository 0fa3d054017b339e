"""Where encoders run: they rest in main memory and visit the host's device for the moment of a run.

Photos are encoded once and their vectors kept, so an encoder that stayed on the device would only take memory from the
sampling that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

from dp_adapter.errors import WeightsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass
class EncoderDevice:
    """The device that the host wants encoders on.

    Attributes:
        device: as torch names it: ``cpu``, ``cuda:0``, ``mps``.
        notes: what had to be done otherwise, in words; whoever tells them takes them out.
    """

    device: str = "cpu"
    notes: list[str] = field(default_factory=list[str])

    @property
    def half(self) -> bool:
        """Whether networks that bear it run in half precision: it is twice as fast there, and slower on a CPU."""
        return self.device.startswith("cuda")

    def take_notes(self) -> list[str]:
        """The notes since they were last asked for."""
        notes, self.notes = self.notes, []
        return notes


class LazyNetwork:
    """A network that is loaded at first use and rests in main memory between runs.

    Args:
        name: in notes.
        build: makes it from its file, on the CPU.
        half: whether to run it in half precision; full precision when None. Numbers that are not finite there make it
            run in full precision from then on.
    """

    def __init__(self, name: str, build: Callable[[], nn.Module], placement: EncoderDevice, half: bool = False) -> None:
        self._name = name
        self._build = build
        self._placement = placement
        self._device = placement.device
        self._half = half
        self._network: nn.Module | None = None
        self._lock = Lock()  # one that is at work must not be moved by another thread

    @property
    def loaded(self) -> bool:
        return self._network is not None

    def run(self, pixels: Tensor, look: Callable[[nn.Module, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What ``look`` gets of the network for pixels [n, 3, s, s], in float32 on the CPU.

        Raises as ``build``, and WeightsError where the numbers are not finite in full precision.
        """
        import torch

        with self._lock:
            try:
                return self._run_checked(pixels, look)
            except torch.cuda.OutOfMemoryError:
                if self._device == "cpu":
                    raise
                self._read_again(f"runs on the CPU: the memory of {self._device} is full")
                self._device = "cpu"
                return self._run_checked(pixels, look)

    def _run_checked(
        self, pixels: Tensor, look: Callable[[nn.Module, Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        import torch

        if self._half:
            values = self._run_once(pixels, look, torch.float16)
            if _finite(values):
                return values
            self._read_again("runs in full precision: in half precision its numbers are not finite")
        values = self._run_once(pixels, look, torch.float32)
        if not _finite(values):
            raise WeightsError(f"What {self._name} gives is not finite", "Its file is damaged: get it again.")
        return values

    def _run_once(
        self, pixels: Tensor, look: Callable[[nn.Module, Tensor], tuple[Tensor, ...]], dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        import torch

        if self._network is None:
            self._network = self._build().to(dtype=dtype).eval().requires_grad_(False)
        with torch.no_grad(), _on_device(self._network, self._device):
            return tuple(value.float().cpu() for value in look(self._network, pixels.to(self._device, dtype)))

    def _read_again(self, what: str) -> None:
        """Lets the network go, to be read again as the file has it, and says why."""
        self._placement.notes.append(f"{self._name} {what}.")
        self._network = None
        self._half = False


def _finite(values: tuple[Tensor, ...]) -> bool:
    return all(bool(value.isfinite().all()) for value in values)


@contextmanager
def _on_device(network: nn.Module, device: str) -> Generator[None]:
    """The network on a device, and afterwards the tensors in main memory that it had before: nothing is copied back."""
    if device == "cpu":
        yield
        return
    resting = network.state_dict()
    try:
        network.to(device)
        yield
    finally:
        network.load_state_dict(resting, assign=True)
        network.to("cpu")  # buffers that are in no state dict
