"""Adapter files of every family with tensors, keys and facts changed: an adapter or a sentence, also in a list."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from dp_adapter.core.latent_gate import LatentGate
from dp_adapter.core.types import Features
from dp_adapter.errors import WeightsError
from dp_adapter.session.model_list import ModelListing
from dp_adapter.webui.api import answers
from dp_adapter.weights import formats
from dp_adapter.weights.checkpoint import Checkpoint
from dp_adapter.weights.families import own_adapter, personal
from dp_adapter.weights.files import WeightFile, open_weights
from dp_adapter.weights.library import Library
from tests import tiny, tiny_pulid
from tests.hostile.tries import hostile
from tests.weights import fused_files
from tests.weights.families.test_fused import person_of

State = dict[str, Any]
TempPaths = pytest.TempPathFactory
Draw = Callable[[st.SearchStrategy[Any]], Any]
MAKERS: dict[str, Callable[[], tiny.Nested | Mapping[str, Tensor]]] = {
    **{
        family: lambda family=family: tiny.family_tensors(family)
        for family in (
            "ip-adapter", "ip-adapter-plus", "ip-adapter-full-face", "faceid", "faceid-plus", "faceid-portrait",
            "faceid-sequence", "mip-adapter", "mip-adapter-plus",
        )
    },
    "facechain-fact": tiny.fact_tensors,
    "facechain-fact-first": lambda: tiny.first_fact_tensors(16),
    "pulid": lambda: tiny_pulid.tensors("v1"),
    "pulid-v1.1": lambda: tiny_pulid.tensors("v1.1", "repack"),
    "storymaker": tiny.storymaker_tensors,
    "masterweaver": tiny.masterweaver_tensors,
    "w-plus": tiny.w_plus_tensors,
    "photomaker": lambda: fused_files.photomaker_tensors("v1"),
    "photomaker-v2": lambda: fused_files.photomaker_tensors("v2"),
    "consistentid": fused_files.consistentid_tensors,
}  # fmt: skip
OWN = ("own-face", "own-gated", "personal")
FAMILIES = (*MAKERS, *OWN)


@cache
def made(family: str) -> WeightFile:
    """A good file of a family."""
    if family not in OWN:
        return WeightFile(Path(f"{family}.safetensors"), tiny.flat(MAKERS[family]()), {})
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{family}.safetensors"
        if family == "personal":
            net = person_of()
            net.learned = torch.nn.Parameter(torch.ones(3, 64))
            personal.save(path, net, "sd15", "Ada", {}, word="ada")
        else:
            adapter = tiny.gated_adapter() if family == "own-gated" else tiny.adapter("sd15", text=True, blending=True)
            adapter.gate = LatentGate(4, 8)
            own_adapter.save(path, adapter, "sd15", "arcface", {}, guidance=1.5)
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            return WeightFile(path, tensors, dict(file.metadata() or {}))


# --- changes --------------------------------------------------------------------------------------------------------

DTYPES = [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.bfloat16,
          torch.float32, torch.float64]  # fmt: skip
NUMBERS = [math.nan, math.inf, -math.inf, 3e38, 0.0]
TENSORS: Mapping[str, Callable[[Tensor], object]] = {
    "no dimensions": lambda tensor: tensor.flatten()[:1].reshape(()),
    "flat": lambda tensor: tensor.flatten(),
    "one dimension more": lambda tensor: tensor[None],
    "one dimension more behind": lambda tensor: tensor[..., None],
    "transposed": lambda tensor: tensor.transpose(0, -1).contiguous() if tensor.ndim else tensor[None],
    "turned": lambda tensor: tensor.movedim(0, -1).contiguous() if tensor.ndim else tensor[None],
    "of no size": lambda tensor: tensor[:0] if tensor.ndim else torch.zeros(0),
    "of no width": lambda tensor: tensor[..., :0] if tensor.ndim else torch.zeros(0),
    "empty": lambda _tensor: torch.zeros(0),
    "shorter": lambda tensor: tensor[1:] if tensor.ndim else tensor,
    "narrower": lambda tensor: tensor[..., 1:].contiguous() if tensor.ndim else tensor,
    "one row": lambda tensor: tensor[:1] if tensor.ndim else tensor,
    "one column": lambda tensor: tensor[..., :1].contiguous() if tensor.ndim else tensor,
    "twice": lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor.expand(2),
    "twice as wide": lambda tensor: torch.cat([tensor, tensor], -1) if tensor.ndim else tensor.expand(2, 2),
    "folded": lambda tensor: tensor.reshape(2, -1) if tensor.numel() % 2 == 0 else tensor,
    "sparse": lambda tensor: tensor.float().to_sparse(),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    "nowhere": lambda tensor: tensor.to("meta"),
    "of huge shape": lambda tensor: torch.zeros(1).expand(2**40, *tensor.shape[1:]),
    "of huge width": lambda tensor: torch.zeros(1).expand(*tensor.shape[:-1], 2**40),
    "with gradients": lambda tensor: torch.nn.Parameter(tensor.float()),
    "negative": lambda tensor: -tensor.float(),
}
KEYS = ["layers.{}.0.to_q.weight", "image_proj.layers.{}.0.to_q.weight", "ip_adapter.{}.to_k_ip.weight",
        "id_encoder.layers.{}.0.to_q.weight", "id_encoder.vision_model.encoder.layers.{}.mlp.fc1.weight",
        "local_fac_prj.layers.{}.0.to_q.weight", "sites.{}.to_k.weight", "projection.proj.{}.weight",
        "image_proj.perceiver_resampler.layers.{}.0.to_q.weight", "FacialEncoder.visual_projection.layers.{}.x",
        "ip_adapter.{}.to_q_lora.down.weight", "unet.up_blocks.{}.attn2.processor.to_k_ip.weight",
        "down_blocks.{}.attn2.processor.linear.weight", "unet.mid_block.{}.attn1.processor.to_q_lora.down.weight",
        "lora_weights.unet.down_blocks.{}.attn1.processor.to_q_lora.down.weight"]  # fmt: skip
COUNTS = ["0", "1", "7", "99", "999999999", "9" * 5000, "²", "x", "-1", "", "٣", "1.2"]
FACTS = [
    "",
    "²",
    "9" * 5000,
    "-1",
    "1.5",
    "0",
    "3",
    "nan",
    "sdxl",
    "patch-resampler",
    "dp_adapter_personal",
    "pt",
    "\x00",
]


def change_tensor(draw: Draw, tensors: State) -> None:
    key = draw(st.sampled_from(sorted(tensors)))
    way = draw(st.sampled_from(["dtype", "number", *TENSORS]))
    tensor = tensors[key]
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return
    if tensor.numel() > 2**30:
        return
    if way == "dtype":
        tensors[key] = tensor.to(draw(st.sampled_from(DTYPES)))
    elif way == "number" and tensor.numel() and tensor.is_floating_point():
        tensors[key] = tensor.detach().float().clone()
        tensors[key].view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from(NUMBERS))
    elif way in TENSORS:
        with contextlib.suppress(RuntimeError, IndexError, NotImplementedError):  # it was changed before
            tensors[key] = TENSORS[way](tensor.detach())


def change_keys(draw: Draw, tensors: State) -> None:
    key = draw(st.sampled_from(sorted(tensors)))
    way = draw(st.sampled_from(["drop", "drop kind", "rename", "count", "swap", "beside", "other family"]))
    if way == "drop":
        del tensors[key]
    elif way == "drop kind":
        end = key.rpartition(".")[0]
        for one in [one for one in tensors if one.startswith(end)]:
            del tensors[one]
    elif way == "rename":
        tensors[key + draw(st.sampled_from([".x", ".0.weight", "²", "."]))] = tensors.pop(key)
    elif way == "count":
        counted = [one for one in sorted(tensors) if any(part.isdigit() for part in one.split("."))] or [key]
        key = draw(st.sampled_from(counted))
        parts = key.split(".")
        at = next((at for at, part in enumerate(parts) if part.isdigit()), 0)
        parts[at] = draw(st.sampled_from(COUNTS))
        tensors[".".join(parts)] = tensors[key]
    elif way == "swap":
        other = draw(st.sampled_from(sorted(tensors)))
        tensors[key], tensors[other] = tensors[other], tensors[key]
    elif way == "beside":
        tensors[draw(st.sampled_from(KEYS)).format(draw(st.sampled_from(COUNTS)))] = tensors[key]
    else:
        tensors.update(made(draw(st.sampled_from(FAMILIES))).tensors)


def changed(draw: Draw, family: str) -> WeightFile:
    """A file of the family with one to three changes."""
    good = made(family)
    tensors: State = dict(good.tensors)
    facts = dict(good.metadata)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        what = draw(st.sampled_from(["tensor", "tensor", "tensor", "keys", "facts"]))
        if what == "tensor":
            change_tensor(draw, tensors)
        elif what == "keys":
            change_keys(draw, tensors)
        else:
            facts[draw(st.sampled_from(["format", "version", "base", "encoder", "kind"]))] = draw(
                st.sampled_from(FACTS)
            )
        if not tensors:
            break
    return WeightFile(good.path, tensors, facts)


# --- what comes of them ---------------------------------------------------------------------------------------------


def features_for(checkpoint: Checkpoint, photos: int = 2) -> Features:
    """Random features as wide as the checkpoint says that it takes them."""
    widths: dict[str, int] = {**checkpoint.features_width}
    face = next((widths[name] for name in ("arcface", "arcface-raw", "sface") if name in widths), None)
    clip = next((widths[name] for name in ("clip-hidden", "clip-parsed") if name in widths), None)

    def numbers(*shape: int) -> Tensor:
        assert math.prod(shape) < 2**26, "more than any encoder gives"
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0))

    def maybe(width: int | None, *shape: int) -> Tensor | None:
        return None if width is None else numbers(*shape, width)

    ids = None
    if checkpoint.tower is not None:
        side = checkpoint.tower.image_size
        raw = None if checkpoint.tower.pack is None else numbers(photos, widths["arcface-raw"])
        assert checkpoint.tower.digest
        ids = checkpoint.tower.embed(numbers(photos, 3, side, side), raw)
    return Features(
        faceid=maybe(face, photos),
        image_embeds=maybe(widths.get("clip-embeds"), photos),
        clip_hidden=maybe(clip, photos, 257),
        clip_hidden_uncond=maybe(clip, 1, 257),
        clip_person=maybe(widths.get("clip-person"), photos, 257),
        clip_parts=maybe(widths.get("clip-parts"), photos, 5, 257),
        eva_pooled=maybe(None if "eva" not in widths else tiny_pulid.EVA_OUT, photos),
        eva_hidden=maybe(widths.get("eva"), photos, 5, 10),
        face_patches=maybe(widths.get("transface"), photos, 16),
        id_embeds=ids,
        w_plus=maybe(widths.get("w-plus"), photos, 18),
    )


def require_tokens(checkpoint: Checkpoint) -> None:
    """An adapter that was read makes tokens of what it says that it takes, or says in words why it does not."""
    try:
        features = features_for(checkpoint)
        tokens = checkpoint.tokens(features)
        text = checkpoint.on_text(features)
        changed = None if text is None else text.fuse(torch.randn(77, checkpoint.context), [1, 2])
    except WeightsError:
        return
    assert tokens.cond.ndim == 2 and tokens.cond.shape == tokens.uncond.shape
    assert tokens.cond.shape[1] == checkpoint.context and tokens.cond.dtype == torch.float32
    assert changed is None or changed.shape == (77, checkpoint.context)


def read(file: WeightFile) -> None:
    """An adapter or a WeightsError that names the file; a list has the same words."""
    try:
        checkpoint = formats.read_opened(file)
    except WeightsError as error:
        assert file.path.name in error.problem, error
        return
    require_tokens(checkpoint)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_that_is_whole_is_read(family: str) -> None:
    checkpoint = formats.read_opened(made(family))
    features = features_for(checkpoint)
    tokens = checkpoint.tokens(features)
    assert tokens.cond.shape[1] == checkpoint.context
    assert torch.isfinite(tokens.cond).all() and torch.isfinite(tokens.uncond).all()


@given(data=st.data())
@hostile
def test_a_changed_file_is_an_adapter_or_a_sentence(data: st.DataObject) -> None:
    read(changed(data.draw, data.draw(st.sampled_from(FAMILIES))))


# --- lists ----------------------------------------------------------------------------------------------------------


def odd_dict(way: str) -> object:
    """What ``torch.save`` takes besides a flat dict of tensors."""
    good: dict[Any, Any] = {one: dict(kept) for one, kept in tiny.family_tensors("ip-adapter").items()}
    if way == "itself in a list":
        good["state_dict"] = [good]
    elif way == "numbers as keys":
        good |= {3: torch.ones(2), None: torch.ones(2), (1, 2): {b"x": torch.ones(1)}}
    elif way == "values":
        good["image_proj"] |= {"proj.weight": [1.0, 2.0], "norm.weight": "text", "norm.bias": None}
    elif way == "a list":
        return [good, good]
    elif way == "half a name":
        good["image_proj"]["\ud800"] = torch.ones(1)
        good["\ud800"] = {}
    elif way == "deep":
        nested: dict[str, Any] = {"x": torch.ones(1)}
        for _ in range(400):
            nested = {"a": nested}
        return nested
    return good


def listed_beside_a_good_one(folder: Path, write: Callable[[Path], object], name: str) -> str:
    """The words of a list on a file that is written beside a good one; the good one is there."""
    place = folder / "dp_adapter"
    place.mkdir(exist_ok=True)
    good = place / "good.safetensors"
    if not good.is_file():
        tiny.write(good, tiny.family_tensors("ip-adapter"), "safetensors")
    write(place / name)
    listed = answers.list_models(ModelListing(Library([folder], False)), "sd15")["models"]
    json.dumps(listed, ensure_ascii=False, allow_nan=False).encode()
    by_name = {one["name"]: one for one in listed}
    assert by_name["good.safetensors"]["fits"], listed
    (other,) = [one for one in listed if one["name"] != "good.safetensors"]
    return other["reason"] or "fits"


ODD = ("itself in a list", "numbers as keys", "values", "a list", "half a name", "deep")


@pytest.mark.parametrize("way", ODD)
def test_a_list_with_an_odd_dict_has_the_good_file(tmp_path: Path, way: str) -> None:
    listed_beside_a_good_one(tmp_path, lambda path: torch.save(odd_dict(way), path), "odd.pt")


@given(data=st.data())
@hostile
def test_a_list_with_a_changed_file_has_the_good_one(data: st.DataObject, tmp_path_factory: TempPaths) -> None:
    changed_one = changed(data.draw, data.draw(st.sampled_from(["ip-adapter", "ip-adapter-full-face", "personal"])))

    def write(path: Path) -> None:
        tensors = dict(changed_one.tensors)
        if any(tensor.numel() > 2**24 for tensor in tensors.values()):
            tensors = {"huge": next(tensor for tensor in tensors.values() if tensor.numel() > 2**24)}
        torch.save(tensors, path)

    listed_beside_a_good_one(tmp_path_factory.mktemp("models"), write, "odd.pt")


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("deep"), PermissionError(13, "Permission denied"), KeyError("x")]
)
def test_a_list_goes_on_whatever_a_file_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(path: Path) -> WeightFile:
        if path.name == "odd.pt":
            raise error
        return open_weights(path)

    monkeypatch.setattr("dp_adapter.session.model_list.open_weights", fail)
    place = tmp_path / "dp_adapter"
    place.mkdir()
    tiny.write(place / "good.safetensors", tiny.family_tensors("ip-adapter"), "safetensors")
    (place / "odd.pt").write_bytes(b"x")
    good, odd = ModelListing(Library([tmp_path], False)).listed("sd15")
    assert good.name == "good.safetensors" and not good.problem
    assert odd.name == "odd.pt" and odd.problem.startswith("cannot be read (") and str(tmp_path) not in odd.problem


# --- the right words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "key", "value", "words"),
    [
        ("ip-adapter", "ip_adapter.1.to_k_ip.weight", torch.ones(16, 48, dtype=torch.int8), "holds int8, not floating"),
        (
            "ip-adapter",
            "image_proj.norm.weight",
            torch.ones(()),
            "cannot be read as IP-Adapter: its tensors do not fit",
        ),
        ("ip-adapter", "image_proj.norm.weight", torch.ones(0), "holds no numbers in 'image_proj.norm.weight'"),
        ("ip-adapter-plus", "image_proj.latents", torch.ones(256), "cannot be read as IP-Adapter Plus"),
        ("w-plus", "w_proj.proj_0.weight", torch.ones(48, 512), "cannot be read as W"),
        ("faceid", "ip_adapter.0.to_q_lora.up.weight", torch.ones(16, 3), "to_q of layer 0 of its LoRA has"),
        ("faceid", "image_proj.norm.weight", torch.ones(48, dtype=torch.complex64), "holds complex64 in"),
        ("faceid", "image_proj.norm.weight", torch.ones(1).expand(2**40), "fewer numbers than its shape says"),
    ],
)
def test_what_is_wrong_is_said(family: str, key: str, value: Tensor, words: str) -> None:
    good = made(family)
    with pytest.raises(WeightsError, match=words) as caught:
        formats.read_opened(WeightFile(good.path, {**good.tensors, key: value}, {}))
    assert good.path.name in caught.value.problem


@pytest.mark.parametrize("version", ["²", "9" * 5000, "-1", "1.5", "", "٣"])
@pytest.mark.parametrize("family", ["own-face", "personal"])
def test_a_version_that_is_no_number(family: str, version: str) -> None:
    good = made(family)
    with pytest.raises(WeightsError, match="was written in version") as caught:
        formats.read_opened(WeightFile(good.path, good.tensors, {**good.metadata, "version": version}))
    assert len(caught.value.problem) < 200
