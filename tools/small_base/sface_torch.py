"""SFace as a torch module, so that gradients pass through it: read from the shipped ONNX file, weights dequantised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn


class SFace(nn.Module):
    """[n, 3, 112, 112] aligned RGB in 0..255 -> [n, 128], not normalised."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        model = onnx.load(path)
        values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        self._steps: list[tuple[str, str, dict[str, object], list[str]]] = []
        for node in model.graph.node:
            options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                values[node.output[0]] = numpy_helper.to_array(options["value"])
            elif node.op_type == "DequantizeLinear":
                values[node.output[0]] = _dequantised(*(values[name] for name in node.input), options)
            elif node.op_type == "Reshape" and node.input[0] in values:
                values[node.output[0]] = values[node.input[0]].reshape(values[node.input[1]])
            else:
                self._steps.append((node.op_type, node.output[0], options, list(node.input)))
        self._input, self._output = model.graph.input[0].name, model.graph.output[0].name
        used = {name for _, _, _, names in self._steps for name in names if name in values}
        self._names = {name: f"w{number}" for number, name in enumerate(sorted(used))}
        for name, key in self._names.items():
            self.register_buffer(key, torch.from_numpy(np.array(values[name], np.float32)))

    def forward(self, pictures: Tensor) -> Tensor:
        at: dict[str, Tensor] = {self._input: pictures}
        for kind, out, options, names in self._steps:
            x, *rest = [at[name] if name in at else self.get_buffer(self._names[name]) for name in names]
            at = {name: value for name, value in at.items() if name == self._input}
            at[out] = _apply(kind, x, rest, options)
        return at[self._output]


def _dequantised(values: np.ndarray, scale: np.ndarray, zero: np.ndarray, options: dict[str, object]) -> np.ndarray:
    axis, block = int(options.get("axis", 1)), int(options.get("block_size", 0))  # type: ignore[call-overload]
    if block:
        scale = np.repeat(scale, block, axis=axis).take(range(values.shape[axis]), axis=axis)
        zero = np.repeat(zero, block, axis=axis).take(range(values.shape[axis]), axis=axis)
    elif scale.ndim == 1:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (values.astype(np.float32) - zero.astype(np.float32)) * scale


def _apply(kind: str, x: Tensor, rest: list[Tensor], options: dict[str, object]) -> Tensor:
    if kind == "Conv":
        pads = options["pads"]
        return F.conv2d(
            x, rest[0], rest[1] if len(rest) > 1 else None, options["strides"], pads[:2], groups=options["group"]
        )
    if kind == "BatchNormalization":
        scale, bias, mean, var = rest
        return F.batch_norm(x, mean, var, scale, bias, eps=options.get("epsilon", 1e-5))
    if kind == "PRelu":
        return F.prelu(x, rest[0].flatten())
    if kind == "Sub":
        return x - rest[0]
    if kind == "Mul":
        return x * rest[0]
    if kind == "Gemm":
        return F.linear(x, rest[0] if options.get("transB") else rest[0].T, rest[1])
    if kind == "Flatten":
        return x.flatten(1)
    if kind == "Dropout":
        return x
    raise ValueError(kind)
