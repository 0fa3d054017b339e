"""PuLID's methods against its golden cases: each is one that a request can name, and the tolerance tells them apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dp_adapter.core.injection import Injection
from dp_adapter.session.checkpoint_choices import PULID_MODES, PULID_ZEROS
from tests.golden.cases import FOLDER, cases
from tests.golden.test_golden import ORTHO, identities_of, load, run_unet

PULID = [case for case in cases() if case.facts["type"] == "pulid"]

if not PULID:
    pytest.skip(f"no PuLID cases in {FOLDER}; set DP_GOLDEN to their folder", allow_module_level=True)


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "add", "zero_tokens": 0}, {"zero_tokens": 0}, {"mode": "orthogonal"}, {"weight": 0.6}],
    ids=["plain addition", "no zero tokens", "the other mode", "another scale"],
)
def test_the_tolerance_tells_right_from_wrong(wrong: dict[str, Any]) -> None:
    case = PULID[0]
    run = next(run for run in case.facts["runs"] if run["out"] == "fidelity/sq/scale1.0")
    (identity,) = identities_of(case, run, load(case))
    output = run_unet("diffusers", case, run, Injection((replace(identity, **wrong),)))
    with pytest.raises(AssertionError):
        case.assert_close(output, case.expected[run["out"]], "unet")


def test_every_method_is_an_official_one() -> None:
    runs: list[dict[str, Any]] = [run for case in PULID for run in case.facts["runs"] if run["impl"] == "official"]
    official = {run["out"].split("/")[0]: (ORTHO[run["ortho"]], run["num_zero"]) for run in runs}
    ours = {name: (mode, PULID_ZEROS.get(mode, 0)) for name, mode in PULID_MODES.items()}
    assert {"plain" if name == "neutral" else name: way for name, way in ours.items()} == official
