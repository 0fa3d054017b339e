"""One feature of an attachment."""

from __future__ import annotations

from contextlib import ExitStack

from torch import Tensor

from dp_adapter.core.types import Step
from dp_adapter.hosts.attach.host_unet import UNetCall


class Part:
    """A feature: it says when it acts, adds rows to a call, and takes them off again; by default it does nothing."""

    def register(self, stack: ExitStack) -> None:
        """Puts hooks or weights into the UNet until ``stack`` closes.

        Raises:
            HostError: they do not fit it, or would not be reached.
        """

    def acts(self, step: Step) -> bool:  # noqa: ARG002
        """Whether it changes anything in a call. Where no part does, the call is left alone."""
        return False

    def add_rows(self, call: UNetCall) -> UNetCall:
        """The call with further rows behind those that it has."""
        return call

    def enter(self, step: Step | None) -> None:
        """The layers run next, with these rows; None where no call runs, or its rows are not known."""

    def leave(self, call: UNetCall, sample: Tensor) -> Tensor:  # noqa: ARG002
        """The UNet's output [R, c, h, w] without the rows that were added."""
        return sample
