"""Whether layers still compute with what something was made from: other weights may come into a model at any time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast
from weakref import ref

from torch import Tensor, nn

# What else layers compute with: PEFT's (which LoRA, how strong), Forge's and Forge neo's (LoRA that is not merged).
_ATTRIBUTES = frozenset(
    {
        "scaling",
        "_active_adapter",
        "_disable_adapters",
        "merged_adapters",
        "forge_online_loras",
        "weight_function",
        "bias_function",
    }
)


class LayerState:
    """What some layers compute with, as it was at the last look.

    Looks at objects, addresses and version numbers only, so that nothing waits for a GPU. What these do not show is a
    load into weights that were made in inference mode, which have no versions: ``forget`` is for that.

    Args:
        layers: those that are no modules have nothing to be looked at.
    """

    def __init__(self, *layers: object) -> None:
        self._layers = [layer for layer in layers if isinstance(layer, nn.Module)]
        self._modules = [module for layer in self._layers for module in layer.modules()]
        self.forget()

    def forget(self) -> None:
        """The next look finds a change."""
        self._looked = False
        self._tensors: list[ref[Tensor]] = []  # not kept alive: a model's weights may go while this is there
        self._numbers: list[tuple[int, int]] = []
        self._others: list[object] = []

    def changed(self) -> bool:
        """Whether anything is another than at the last look; the first one finds a change."""
        tensors = [tensor for tensor in self._all_tensors() if not tensor.is_meta]  # offloaded: here while it computes
        numbers = [(_address(tensor), -1 if tensor.is_inference() else tensor._version) for tensor in tensors]
        others = [value for layer in self._layers for value in _attributes(layer)]
        if (
            self._looked
            and numbers == self._numbers
            and len(others) == len(self._others)
            and all(old() is new for old, new in zip(self._tensors, tensors, strict=True))
            and all(old is new for old, new in zip(self._others, others, strict=True))
        ):
            return False
        self._looked, self._numbers, self._others = True, numbers, others
        self._tensors = [ref(tensor) for tensor in tensors]
        return True

    def _all_tensors(self) -> Iterator[Tensor]:
        for module in self._modules:
            own = vars(module)  # without the walks of parameters(), since this is done in every step
            for kept in (own["_parameters"], own["_buffers"]):
                yield from (tensor for tensor in kept.values() if tensor is not None)


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a quantised tensor that is made of others
        return 0


def _attributes(layer: nn.Module) -> Iterator[object]:
    """The values one by one where they are kept in a container, which may be changed in place."""
    own = vars(layer)
    for name in _ATTRIBUTES & own.keys():
        value = own[name]
        if isinstance(value, dict):
            yield from cast("dict[str, object]", value).values()
        elif isinstance(value, list | tuple):
            yield from cast("list[object]", value)
        else:
            yield value
