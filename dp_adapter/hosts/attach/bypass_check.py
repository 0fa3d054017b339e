"""Notices a UNet that is called past its layers, so that no picture comes out without its identity and without a word.

Step caches (DeepCache, TeaCache) leave layers out in some calls, and reuse what the identity did in others. What leaves
all of them out in every call (a replaced or compiled UNet) leaves out the identity.
"""

from __future__ import annotations

from dp_adapter.errors import HostError

_PATIENCE = 10  # calls in a row; no step cache leaves out as many before it has computed anything


class BypassCheck:
    """Whether any identity acted in those calls of the UNet in which it had to, for one attachment.

    Attributes:
        calls: how often the sampler called the UNet. 0 after sampling means that another model was sampled.
        acted: whether an identity ever acted.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.acted = False
        self._has_to = False
        self._silent = 0

    def enter(self) -> None:
        """A call of the UNet begins."""
        self.calls += 1
        self._has_to = False

    def expect(self) -> None:
        """An identity has to act in the call that began."""
        self._has_to = True

    def leave(self) -> None:
        """The call ended. Raises HostError where it is clear by now that nothing will act."""
        self._silent += self._has_to and not self.acted
        self._has_to = False
        if self._silent >= _PATIENCE:
            self.require()

    def require(self) -> None:
        """At the end: raises HostError where an identity had to act and did not, once."""
        silent, self._silent = self._silent, 0
        if silent and not self.acted:
            raise HostError(
                f"The model was called {'once' if silent == 1 else f'{silent} times'}, and its attention layers, where "
                "the identity acts, never ran",
                "Something runs in their place (a compiled or exported model, TensorRT, a step cache that skips every "
                "step): switch that off, or DP-Adapter.",
            )

    def require_calls(self, steps: int) -> None:
        """Raises HostError where the sampler took steps with another model.

        Args:
            steps: how many it announced.
        """
        if steps and not self.calls:
            raise HostError(
                "The sampler ran another model than the one that the identity was put into",
                "An extension or a refiner takes its place from the first step on: switch that off, or DP-Adapter.",
            )

    def give_up(self) -> None:
        """Sampling was broken off, or what there is to say was said."""
        self._silent = 0
