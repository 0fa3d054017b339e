"""What the hosts' control models are asked with. All else needs the hosts themselves: tests/real."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dp_adapter.core.types import Grid, Row, Step
from dp_adapter.errors import HostError
from dp_adapter.webui.job import identity_net_a1111
from dp_adapter.webui.job.identity_net_a1111 import PersonControl
from dp_adapter.webui.job.identity_net_forge import token_modifier
from tests import tiny

TOKENS = tiny.tokens()
ROWS = (Row("cond", 0), Row("uncond", 0))


class Model:
    """Answers with what it is asked."""

    control_model = "inner"

    def __call__(self, **asked: Any) -> dict[str, Any]:
        return asked


def asked(rows: tuple[Row, ...] | None, count: int = 2, size: tuple[int, int] = (64, 128)) -> dict[str, Any]:
    step = None if rows is None else Step(0.0, rows, Grid(8, 16))
    told: Any = PersonControl(Model(), TOKENS, size, lambda: step)
    assert told.control_model == "inner"
    return told(x=torch.zeros(count, 4, 8, 16), context=torch.zeros(count, 77, 4, dtype=torch.float64), y=1)


def test_tokens_by_row() -> None:
    for rows in (ROWS, ROWS[::-1]):
        made = asked(rows)
        expected = [TOKENS.cond if row.kind == "cond" else TOKENS.uncond for row in rows]
        assert torch.equal(made["context"], torch.stack(expected).double())
        assert made["y"] == 1 and made["x"].shape[0] == 2


@pytest.mark.parametrize("rows", [None, ROWS * 2])
def test_rows_that_nobody_knows_are_refused(rows: tuple[Row, ...] | None) -> None:
    with pytest.raises(HostError, match="2 rows, and nothing says"):
        asked(rows)


def test_tiles_are_refused() -> None:
    with pytest.raises(HostError, match=r"for 256 x 64 px, and the UNet makes 128 x 64.*tiles"):
        asked(ROWS, size=(64, 256))


def test_forge_controls_of_others_keep_their_text() -> None:
    """One control hands its inputs on to the one that was there before it."""
    mine, other = (SimpleNamespace(transformer_options={"cond_or_uncond": [1, 0]}) for _ in range(2))
    modify = token_modifier({id(mine): TOKENS})
    text, x = torch.zeros(4, 77, 4), torch.zeros(4, 4, 8, 8)
    _, _, asked_mine, _ = modify(mine, x, x, {"c_crossattn": text, "y": 1}, 2)
    expected = torch.stack([TOKENS.uncond, TOKENS.uncond, TOKENS.cond, TOKENS.cond])
    assert torch.equal(asked_mine["c_crossattn"], expected) and asked_mine["y"] == 1
    _, _, asked_other, _ = modify(other, x, x, asked_mine, 2)
    assert asked_other["c_crossattn"] is text
    _, _, again, _ = modify(mine, x, x, asked_other, 2)
    assert torch.equal(again["c_crossattn"], expected)
    with pytest.raises(HostError, match="3 rows of 2 kinds"):
        modify(mine, x[:3], x, {"c_crossattn": text}, 2)


def test_a_control_that_fails_on_leaving_gives_the_unet_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A1111's extension leaves the UNet's forward as an attribute; so much the more where it breaks."""
    unet = torch.nn.Linear(1, 1)

    class Hook:
        def __init__(self, lowvram: bool) -> None:
            pass

        def hook(self, model: Any, **_: Any) -> None:
            model.forward = model.forward

        def restore(self) -> None:
            raise RuntimeError("it broke")

    names = {"hook": SimpleNamespace(UnetHook=Hook)}
    monkeypatch.setattr(identity_net_a1111, "extension_names", lambda: names)
    monkeypatch.setattr(identity_net_a1111, "controlnets", list)

    def same(_given: object) -> torch.nn.Module:
        return unet

    monkeypatch.setattr(identity_net_a1111.shared_session, "control_model", same)
    monkeypatch.setattr(identity_net_a1111.compat, "diffusion_model", same)
    p = SimpleNamespace(sd_model=SimpleNamespace(dtype=torch.float32))
    net: Any = SimpleNamespace(model="instantid", persons=())
    with pytest.raises(RuntimeError, match="it broke"), identity_net_a1111.add_controls(p, net, lambda: None):
        assert "forward" in vars(unet)
    assert "forward" not in vars(unet)
