"""The UNet outputs of every golden case through the Forge host, folded and plain."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dp_adapter.core.injection import Form, Injection
from dp_adapter.hosts.attach import forge
from tests import tiny
from tests.golden.cases import Case
from tests.golden.test_golden import RUNS, injection_of, rows_of, unet_of
from tests.hosts import forge_real
from tests.hosts.forge_host import Forge
from tests.hosts.forge_unet import Unet


@lru_cache(maxsize=4)
def host_of(name: str, path: Path) -> Forge:
    base = "sdxl" if "sdxl" in path.name else "sd15"
    if name == "forge":
        return Forge(base, Unet(copy.deepcopy(unet_of(path))))
    arguments = json.loads((path / "case.json").read_text(encoding="utf-8"))["forge_constructor"]["kwargs"]
    numbers = {key: value.float() for key, value in load_file(str(path / "unet_ldm.safetensors")).items()}
    return Forge(base, forge_real.builders()[name](arguments, numbers))


def run_unet(name: str, case: Case, run: dict[str, Any], injection: Injection) -> Tensor:
    host, rows = host_of(name, case.base), run["batch"]
    text = [row["text"] for row in rows]
    latents = case.inputs[run["latents"]][[row["latent"] for row in rows]]
    given = tiny.Inputs(latents, case.inputs[run["context"]][text], case.inputs["timestep"].item())
    extra: dict[str, Any] = {"y": case.inputs["adm"][text]} if "adm" in case.inputs else {}
    with torch.no_grad(), forge.attach(host.unet, injection, rows_of(run)):
        return host(given, **extra)


@pytest.mark.parametrize("name", ["forge", *forge_real.builders()])
@pytest.mark.parametrize("form", ["folded", "plain"])
@pytest.mark.parametrize(("case", "run"), RUNS)
def test_unet_output(name: str, case: Case, run: dict[str, Any], form: Form) -> None:
    if run.get("upsampling") == "a1111" or run["out"].endswith("odd_a1111"):
        pytest.skip("A1111's upsampling of odd sizes: for the ldm host")
    if run["out"].startswith(("mask/sq", "mask/odd")):
        pytest.skip("informative: diffusers resizes this mask bicubically")
    case.assert_close(run_unet(name, case, run, injection_of(case, run, form)), case.expected[run["out"]], "unet")
