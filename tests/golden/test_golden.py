"""Tokens and UNet outputs of every golden case, through our loader and two hosts, folded, half-folded and plain."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dp_adapter.core.injection import FOLDABLE, Form, Identity, Injection
from dp_adapter.core.types import BlendMode, Features, Row, Tokens
from dp_adapter.hosts.attach import diffusers as host
from dp_adapter.hosts.attach import ldm as ldm_host
from dp_adapter.weights import formats
from dp_adapter.weights.checkpoint import Checkpoint, RecipeOptions
from tests.golden.cases import FOLDER, Case, cases
from tests.hosts import ldm_unet

CASES = list(cases())
RUNS = [pytest.param(case, run, id=f"{case.name}-{run['out']}") for case in CASES for run in case.facts["runs"]]
IDENTITIES = [
    pytest.param(case, name, id=f"{case.name}-{name}") for case in CASES for name in case.facts.get("identities", {})
]

if not CASES:
    pytest.skip(f"no golden cases in {FOLDER}; set DP_GOLDEN to their folder", allow_module_level=True)


HOSTS: Mapping[str, ModuleType] = {"diffusers": host, "ldm": ldm_host}
ORTHO: Mapping[str, BlendMode] = {"off": "add", "v1": "orthogonal", "v2": "orthogonal_v2"}  # PuLID's switch


@lru_cache(maxsize=4)
def unet_of(path: Path) -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(path / "unet").float().eval()


@lru_cache(maxsize=4)
def ldm_unet_of(path: Path) -> nn.Module:
    facts = json.loads((path / "case.json").read_text(encoding="utf-8"))
    return ldm_unet.build(facts["ldm_constructor"]["kwargs"], load_file(str(path / "unet_ldm.safetensors")))


@lru_cache(maxsize=4)
def checkpoint_of(path: Path, file: str, family: str) -> Checkpoint:
    return formats.read(path / file, family)


def load(case: Case) -> Checkpoint:
    if case.family is None:
        pytest.skip(f"not yet: {case.facts['type']}")
    return checkpoint_of(case.path, case.facts["checkpoint"], case.family)


def features(case: Case, inputs: dict[str, str]) -> Features:
    tensors = {name: case.inputs[key] for name, key in inputs.items()}
    if "face_embedding" in tensors:  # InstantID takes all faces of a photo set as one sequence
        tensors["faceid"] = tensors.pop("face_embedding").reshape(
            1, -1, case.inputs[inputs["face_embedding"]].shape[-1]
        )
    if "arcface" in tensors:
        tensors["faceid"] = tensors.pop("arcface")
    if "eva_hidden" in tensors:
        tensors["eva_hidden"] = tensors["eva_hidden"].transpose(0, 1)  # [5, n, L, c] -> [n, 5, L, c]
    return Features(
        faceid=tensors.get("faceid"),
        image_embeds=tensors.get("clip"),
        clip_hidden=tensors.get("clip_hidden", tensors.get("clip_hidden_face")),
        clip_hidden_uncond=tensors.get("clip_hidden_uncond"),
        clip_person=tensors.get("clip_hidden_person"),
        face_patches=tensors.get("transface_local"),
        eva_pooled=tensors.get("eva_pooled"),
        eva_hidden=tensors.get("eva_hidden"),
        w_plus=tensors.get("w_plus"),
    )


def tokens_of(case: Case, checkpoint: Checkpoint, name: str) -> Tokens:
    facts = case.facts["identities"][name]
    params = facts.get("params", {})
    options = RecipeOptions(params.get("shortcut", True), params.get("s_scale", 1.0))
    return checkpoint.tokens(features(case, facts["inputs"]), options)


@pytest.mark.parametrize(("case", "name"), IDENTITIES)
def test_identity_tokens(case: Case, name: str) -> None:
    tokens = tokens_of(case, load(case), name)
    for kind, actual in (("cond", tokens.cond), ("uncond", tokens.uncond)):
        expected = case.expected[f"tokens/{name}/{kind}"]
        case.assert_close(actual.reshape(expected.shape), expected, "tokens")


def persons_of(run: dict[str, Any]) -> list[str]:
    """The identities whose tokens the rows of an official run get."""
    return sorted({row["tokens"].rsplit("/", 1)[0] for row in run["batch"] if row.get("tokens")})


def own_rows(run: dict[str, Any], person: str) -> Tensor:
    """A mask [R, 8, 8] by row: everywhere in the rows of one person, nowhere in the others'."""
    own = [row.get("tokens", "").rsplit("/", 1)[0] == person for row in run["batch"]]
    return torch.tensor(own).float()[:, None, None].expand(-1, 8, 8)


def identities_of(case: Case, run: dict[str, Any], checkpoint: Checkpoint) -> tuple[Identity, ...]:
    scale = run["scale"]
    if run["impl"] == "official":
        names = {row["tokens"] for row in run["batch"] if row.get("tokens")}
        of = {"cond": "cond", "uncond": "uncond"}
        if all(name.endswith("/cond") for name in names):  # FaceChain's default: the same face in both rows
            of["uncond"] = "cond"
        persons = persons_of(run)
        identities: list[Identity] = []
        for person in persons:
            tokens = tokens_of(case, checkpoint, person)
            both = {"cond": tokens.cond, "uncond": tokens.uncond}
            mask = own_rows(run, person) if len(persons) > 1 else None
            tokens = Tokens(both[of["cond"]], both[of["uncond"]])
            identities.append(
                Identity(checkpoint.adapter, tokens, scale, mask, mode_of(run, checkpoint), zeros_of(run))
            )
        return tuple(identities)
    ids = case.inputs[run["ids"]]
    if run["masks"] is None:
        return (Identity(checkpoint.adapter, checkpoint.tokens(Features(faceid=ids)), scale),)
    masks = case.inputs[run["masks"]].float()
    scales = scale if isinstance(scale, list) else [scale] * len(ids)
    return tuple(
        Identity(checkpoint.adapter, checkpoint.tokens(Features(faceid=one[None])), weight, mask[None])
        for one, mask, weight in zip(ids, masks, scales, strict=True)
    )


def mode_of(run: dict[str, Any], checkpoint: Checkpoint) -> BlendMode:
    """What the run says (PuLID's switches), or the checkpoint."""
    return ORTHO[run["ortho"]] if "ortho" in run else checkpoint.mode


def zeros_of(run: dict[str, Any]) -> int:
    return run.get("num_zero", 0)


def skip_form(form: Form, injection: Injection) -> None:
    """What blends with the text's result, or acts before it, has no folded form."""
    mode = injection.identities[0].mode
    if form != "plain" and mode not in FOLDABLE:
        pytest.skip(f"'{mode}' has no folded form")


def rows_of(run: dict[str, Any]) -> list[Row]:
    if run["impl"] == "official" and not all(row.get("tokens") for row in run["batch"]):
        kinds = [row.get("tokens", "").rpartition("/")[2] or "text" for row in run["batch"]]
        return [Row(kind, number) for number, kind in enumerate(kinds)]  # type: ignore[arg-type]
    same_face = all(row.get("tokens", "").endswith("/cond") for row in run["batch"])
    kinds = ["cond" if row.get("cond", row.get("tokens", "").endswith("/cond")) else "uncond" for row in run["batch"]]
    if same_face:
        kinds = ["cond" if row["text"] == 0 else "uncond" for row in run["batch"]]
    several = len(persons_of(run)) > 1
    return [Row("cond" if kind == "cond" else "uncond", number * several) for number, kind in enumerate(kinds)]


def run_unet(name: str, case: Case, run: dict[str, Any], injection: Injection) -> Tensor:
    rows = run["batch"]
    text = [row["text"] for row in rows]
    latents = case.inputs[run["latents"]][[row["latent"] for row in rows]]
    context, timestep = case.inputs[run["context"]][text], case.inputs["timestep"]
    unet = unet_of(case.base) if name == "diffusers" else ldm_unet_of(case.base)
    attached: AbstractContextManager[object] = HOSTS[name].attach(unet, injection, rows_of(run))
    with torch.no_grad(), attached:
        if name == "diffusers":
            extra = {key: case.inputs[key][text] for key in ("text_embeds", "time_ids") if key in case.inputs}
            return unet(latents, timestep, context, added_cond_kwargs=extra or None).sample
        vector = {"y": case.inputs["adm"][text]} if "adm" in case.inputs else {}
        with ldm_unet.resizing():
            return unet(latents, timesteps=timestep.float().expand(len(rows)), context=context, **vector)


def skip_odd_sizes_of_others(name: str, run: dict[str, Any]) -> None:
    """The two hosts resize odd sizes differently; each has its own expected outputs."""
    own = run.get("upsampling") == "a1111"
    if "odd" in run["out"] and own != (name == "ldm"):
        pytest.skip("odd sizes as the other host makes them")


def injection_of(case: Case, run: dict[str, Any], form: Form) -> Injection:
    if run["impl"] == "none":
        return Injection(())
    checkpoint = load(case)
    lora = tuple((entry, run.get("lora", 1.0)) for entry in checkpoint.lora)
    injection = Injection(identities_of(case, run, checkpoint), lora=lora, form=form)
    skip_form(form, injection)
    assert injection.form_used == form
    return injection


@pytest.mark.parametrize("form", ["folded", "half", "plain"])
@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize(("case", "run"), RUNS)
def test_unet_output(case: Case, run: dict[str, Any], name: str, form: Form) -> None:
    skip_odd_sizes_of_others(name, run)
    expected = case.expected[run["out"]]
    actual = run_unet(name, case, run, injection_of(case, run, form))
    if run["out"].startswith(("mask/sq", "mask/odd")):
        difference = (actual - expected).abs().max().item()
        pytest.skip(f"informative: diffusers resizes this mask bicubically; largest difference {difference:.3g}")
    case.assert_close(actual, expected, "unet")


MERGED = [pytest.param(case, id=case.name) for case in CASES if "merged_lora" in case.facts]


@pytest.mark.parametrize("case", MERGED)
def test_merged_lora(case: Case) -> None:
    checkpoint = load(case)
    unet = unet_of(case.base)
    modules = dict(unet.named_modules())
    before = {name: id(module.weight) for name, module in modules.items() if isinstance(module, nn.Linear)}
    tokens = next(tokens_of(case, checkpoint, name) for name in case.facts["identities"])
    injection = Injection((Identity(checkpoint.adapter, tokens),), lora=tuple((x, 1.0) for x in checkpoint.lora))
    with host.attach(unet, injection, [Row("cond")]):
        for facts in case.facts["merged_lora"]["modules"]:
            merged = modules[facts["diffusers"]].get_parameter("weight")
            case.assert_close(merged, case.expected[f"merged/{facts['ldm']}.weight"], "tokens")
    assert before == {name: id(module.weight) for name, module in modules.items() if isinstance(module, nn.Linear)}
