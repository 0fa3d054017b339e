"""Where networks run, and what is done where they cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.errors import WeightsError
from dp_adapter.identity.encoders.encoder_device import EncoderDevice, LazyNetwork
from dp_adapter.identity.encoders.shipped_networks import CPU, providers_for
from tests.precision import needs_half


def network(scale: float) -> nn.Module:
    layer = nn.Linear(4, 2, bias=False)
    nn.init.constant_(layer.weight, scale)
    return layer


def look(layer: nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
    return (layer(pixels), layer(2 * pixels))


ONES = torch.ones(1, 4)


def test_it_is_loaded_once_and_gives_full_precision() -> None:
    built: list[nn.Module] = []

    def build() -> nn.Module:
        built.append(network(0.5))
        return built[-1].half()

    lazy = LazyNetwork("tower", build, EncoderDevice())
    assert not lazy.loaded
    for _ in range(2):
        one, two = lazy.run(ONES, look)
        assert one.tolist() == [[2.0, 2.0]] and two.tolist() == [[4.0, 4.0]] and one.dtype == torch.float32
    assert lazy.loaded and len(built) == 1
    assert all(not parameter.requires_grad for parameter in built[0].parameters())


@needs_half
def test_half_precision_is_kept_while_its_numbers_are_finite() -> None:
    placement, seen = EncoderDevice(), list[torch.dtype]()

    def dtypes(layer: nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
        seen.append(pixels.dtype)
        return look(layer, pixels)

    fine = LazyNetwork("tower", lambda: network(0.5), placement, half=True)
    assert fine.run(ONES, dtypes)[0].dtype == torch.float32 and seen == [torch.float16] and not placement.take_notes()
    large = LazyNetwork("tower", lambda: network(10_000.0), placement, half=True)  # 2 * 4 * 10^4 is no half number
    assert [value.tolist() for value in large.run(ONES, dtypes)] == [[[40_000.0] * 2], [[80_000.0] * 2]]
    assert placement.take_notes() == ["tower runs in full precision: in half precision its numbers are not finite."]
    large.run(ONES, dtypes)
    assert seen[1:] == [torch.float16, torch.float32, torch.float32] and not placement.take_notes(), "said once"


@pytest.mark.parametrize("half", [pytest.param(True, marks=needs_half), False])
def test_a_damaged_network_is_said(half: bool) -> None:
    lazy = LazyNetwork("tower", lambda: network(float("nan")), EncoderDevice(), half=half)
    with pytest.raises(WeightsError, match=r"What tower gives is not finite\. Its file is damaged"):
        lazy.run(ONES, look)


def test_a_full_cpu_is_an_error() -> None:
    def full(_layer: nn.Module, _pixels: Tensor) -> tuple[Tensor, ...]:
        raise torch.cuda.OutOfMemoryError("full")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        LazyNetwork("tower", lambda: network(1.0), EncoderDevice()).run(ONES, full)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_leaves_the_memory_again() -> None:
    placement = EncoderDevice("cuda")
    lazy = LazyNetwork("tower", lambda: network(0.5), placement, half=placement.half)
    (first, _), before = lazy.run(ONES, look), torch.cuda.memory_allocated()
    assert first.device.type == "cpu" and first.tolist() == [[2.0, 2.0]]
    lazy.run(ONES, look)
    assert torch.cuda.memory_allocated() == before

    def full(layer: nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
        if pixels.is_cuda:
            raise torch.cuda.OutOfMemoryError("full")
        return look(layer, pixels)

    assert lazy.run(ONES, full)[0].tolist() == [[2.0, 2.0]]
    assert placement.take_notes() == ["tower runs on the CPU: the memory of cuda is full."]


def test_the_gpus_provider_is_only_asked_for_where_there_is_one() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert providers_for("cpu") == CPU
    has = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    assert providers_for("cuda:0") == (("CUDAExecutionProvider", *CPU) if has else CPU)
