"""PuLID's attention: our blend modes and zero tokens with the official tokens, against the official UNet outputs.

PuLID's encoder is not ours, so the expected tokens are the input here; K and V come straight from the case's file.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.injection import Identity, Injection
from dp_adapter.core.types import BlendMode, Row, Tokens
from dp_adapter.weights.files import open_weights
from tests.golden.cases import FOLDER, Case, cases
from tests.golden.test_golden import HOSTS, run_unet, skip_odd_sizes_of_others

MODES: dict[str, BlendMode] = {"off": "add", "v1": "orthogonal", "v2": "orthogonal_v2"}
PULID = [case for case in cases() if case.facts["type"] == "pulid"]
RUNS = [
    pytest.param(case, run, id=f"{case.name}-{run['out']}")
    for case in PULID
    for run in case.facts["runs"]
    if run["impl"] == "official"
]

if not PULID:
    pytest.skip(f"no PuLID cases in {FOLDER}; set DP_GOLDEN to their folder", allow_module_level=True)


@lru_cache
def adapter_of(file: Path) -> Adapter:
    """K and V of ``id_adapter_attn_layers.N``, N odd, in the order of the processors."""
    tensors = open_weights(file).tensors
    sites: list[SiteAdapter] = []
    for index in range(70):
        k, v = (tensors[f"id_adapter_attn_layers.{2 * index + 1}.id_to_{name}.weight"].float() for name in "kv")
        site = SiteAdapter(k.shape[1], k.shape[0])
        site.load_state_dict({"to_k.weight": k, "to_v.weight": v})
        sites.append(site.requires_grad_(False))
    assert "id_adapter_attn_layers.141.id_to_k.weight" not in tensors
    return Adapter(nn.Identity(), sites)


def injection_of(case: Case, run: dict[str, Any], **changes: Any) -> Injection:
    name = next(row["tokens"] for row in run["batch"]).rsplit("/", 1)[0]
    cond, uncond = (case.expected[f"tokens/{name}/{kind}"].flatten(0, 1) for kind in ("cond", "uncond"))
    facts: dict[str, Any] = {"mode": MODES[run["ortho"]], "zero_tokens": run["num_zero"], "weight": run["scale"]}
    adapter = adapter_of(case.path / case.facts["checkpoint"])
    return Injection((Identity(adapter, Tokens(cond, uncond), **(facts | changes)),))


def rows_of(run: dict[str, Any]) -> list[Row]:
    return [Row("uncond" if row["tokens"].endswith("/uncond") else "cond") for row in run["batch"]]


def output(case: Case, run: dict[str, Any], name: str = "diffusers", **changes: Any) -> Tensor:
    return run_unet(name, case, run, injection_of(case, run, **changes))


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize(("case", "run"), RUNS)
def test_pulid(case: Case, run: dict[str, Any], name: str) -> None:
    skip_odd_sizes_of_others(name, run)
    case.assert_close(output(case, run, name), case.expected[run["out"]], "unet")


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "add", "zero_tokens": 0}, {"zero_tokens": 0}, {"mode": "orthogonal"}, {"weight": 0.6}],
    ids=["plain addition", "no zero tokens", "the other mode", "another scale"],
)
def test_the_tolerance_tells_right_from_wrong(wrong: dict[str, Any]) -> None:
    case = PULID[0]
    run = next(run for run in case.facts["runs"] if run["out"] == "fidelity/sq/scale1.0")
    with pytest.raises(AssertionError):
        case.assert_close(output(case, run, **wrong), case.expected[run["out"]], "unet")


def test_every_mode_is_covered() -> None:
    runs: list[dict[str, Any]] = [run for case in PULID for run in case.facts["runs"] if run["impl"] == "official"]
    assert {(run["ortho"], run["num_zero"]) for run in runs} == {("off", 0), ("v1", 16), ("v2", 8)}
    assert torch.is_tensor(PULID[0].expected["tokens/A/cond"])
