"""A small ONNX network as a torch module, so that gradients pass through it.

It knows the layers of the shipped SFace, whose weights are quantised by blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dp_adapter.errors import CatalogError, MissingDependencyError

Array = NDArray[Any]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class _Step:
    kind: str
    out: str
    inputs: tuple[str, ...]
    options: Options
    last_uses: tuple[str, ...]


class OnnxNet(nn.Module):
    """[n, ...] -> [n, ...], from a file with one input and one output; its weights are frozen, in float32.

    Raises:
        MissingDependencyError: the package onnx is not installed.
        CatalogError: the file cannot be read, or has layers that no face network has.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = _graph(path)
        values, nodes = _constants(graph)
        unknown = sorted({kind for kind, _, _, _ in nodes} - set(_LAYERS))
        if unknown:
            raise CatalogError(f"{path.name} has layers that cannot be trained through: {', '.join(unknown)}")
        self._input, self._output = str(graph.input[0].name), str(graph.output[0].name)
        self._steps = _with_last_uses(nodes, values.keys(), self._output)
        used = {name for step in self._steps for name in step.inputs if name in values}
        self._keys = {name: f"w{number}" for number, name in enumerate(sorted(used))}
        for name, key in self._keys.items():
            self.register_buffer(key, torch.as_tensor(np.array(values[name], np.float32)), persistent=False)

    def forward(self, x: Tensor, observe: Callable[[Tensor], None] = lambda _: None) -> Tensor:
        """Runs the network; ``observe`` is called with the output of each layer."""
        known: dict[str, Tensor] = {self._input: x}
        for step in self._steps:
            first, *rest = [known[n] if n in known else self.get_buffer(self._keys[n]) for n in step.inputs]
            known[step.out] = _LAYERS[step.kind](first, rest, step.options)
            observe(known[step.out])
            for name in step.last_uses:
                del known[name]
        return known[self._output]


def _graph(path: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise MissingDependencyError("onnx", "Training with a face network", "train") from None
    try:
        return cast(Any, onnx).load(path).graph
    except Exception as error:  # protobuf's and onnx's errors share no base of their own
        raise CatalogError(f"{path} cannot be read as ONNX: {error}", "Restore or fetch the file again.") from error


def _constants(graph: Any) -> tuple[dict[str, Array], list[tuple[str, str, tuple[str, ...], Options]]]:
    """The graph's constants by name, and its other nodes: kind, output, inputs, options."""
    import onnx
    from onnx import numpy_helper

    helper = cast(Any, onnx).helper
    values: dict[str, Array] = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    nodes: list[tuple[str, str, tuple[str, ...], Options]] = []
    for node in graph.node:
        options = {str(a.name): helper.get_attribute_value(a) for a in node.attribute}
        kind, out, inputs = str(node.op_type), str(node.output[0]), tuple(str(name) for name in node.input)
        if kind == "Constant":
            values[out] = numpy_helper.to_array(options["value"])
        elif kind == "DequantizeLinear":
            values[out] = _dequantised(*(values[name] for name in inputs), options=options)
        elif kind == "Reshape" and inputs[0] in values:
            values[out] = values[inputs[0]].reshape(values[inputs[1]])
        else:
            nodes.append((kind, out, inputs, options))
    return values, nodes


def _with_last_uses(
    nodes: Sequence[tuple[str, str, tuple[str, ...], Options]], constants: Any, output: str
) -> list[_Step]:
    last = {name: number for number, (_, _, inputs, _) in enumerate(nodes) for name in inputs if name not in constants}
    return [
        _Step(
            kind, out, inputs, options, tuple(n for n, last_one in last.items() if last_one == number and n != output)
        )
        for number, (kind, out, inputs, options) in enumerate(nodes)
    ]


def _dequantised(values: Array, scale: Array, zero: Array, options: Options) -> NDArray[np.float32]:
    """(values - zero) scale, with a scale for each block along the axis."""
    axis, block = int(options["axis"]), int(options["block_size"])
    inside = range(values.shape[axis])
    scale, zero = (np.repeat(x, block, axis=axis).take(inside, axis=axis) for x in (scale, zero))
    return (values.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)


def _conv(x: Tensor, rest: Sequence[Tensor], options: Options) -> Tensor:
    (weight,), strides, pads = rest, options["strides"], options["pads"]
    return F.conv2d(x, weight, None, tuple(strides), tuple(pads[:2]), groups=int(options["group"]))


def _batch_norm(x: Tensor, rest: Sequence[Tensor], options: Options) -> Tensor:
    scale, bias, mean, variance = rest
    return F.batch_norm(x, mean, variance, scale, bias, eps=float(options["epsilon"]))


_LAYERS: Mapping[str, Callable[[Tensor, Sequence[Tensor], Options], Tensor]] = {
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Gemm": lambda x, rest, _: F.linear(x, *rest),
    "PRelu": lambda x, rest, _: F.prelu(x, rest[0].flatten()),
    "Sub": lambda x, rest, _: x - rest[0],
    "Mul": lambda x, rest, _: x * rest[0],
    "Flatten": lambda x, _rest, _: x.flatten(1),
    "Dropout": lambda x, _rest, _: x,
}
