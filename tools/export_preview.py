"""Writes the trained network of tools/train_preview.py as models/preview_faces.onnx, its weights in half precision.

    python -m tools.export_preview out/preview/preview.pt models/preview_faces.onnx

Arithmetic stays in float32: every large constant is stored as float16 and followed by a Cast, which onnxruntime folds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tools.preview_net import PreviewNet


class Shares(nn.Module):
    """The network with shares in 0..1 instead of logits for the centres and the mask."""

    def __init__(self, network: PreviewNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        heads, mask = self.network(pictures)
        return torch.cat([heads[:, :1].sigmoid(), heads[:, 1:]], 1), mask.sigmoid()


def export(weights: Path, target: Path) -> None:
    network = PreviewNet().eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    free = {2: "height", 3: "width"}
    torch.onnx.export(
        Shares(network).eval(),
        (torch.rand(1, 3, 128, 128),),
        str(target),
        input_names=["picture"],
        output_names=["heads", "mask"],
        dynamic_axes=dict.fromkeys(("picture", "heads", "mask"), free),
        opset_version=17,
        dynamo=False,
    )
    model = onnx.load(str(target))
    _halve(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def _halve(graph: onnx.GraphProto) -> None:
    for constant in list(graph.initializer):
        values = numpy_helper.to_array(constant)
        if values.dtype != np.float32 or values.size < 64:
            continue
        name = constant.name
        half = numpy_helper.from_array(values.astype(np.float16), f"{name}_half")
        graph.initializer.remove(constant)
        graph.initializer.append(half)
        cast = onnx.helper.make_node("Cast", [half.name], [name], f"{name}_cast", to=onnx.TensorProto.FLOAT)
        graph.node.insert(0, cast)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    export(args.weights, args.target)
