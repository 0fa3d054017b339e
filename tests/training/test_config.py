"""A run's file: what is refused, in which words; the losses of the stages; the examples that are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dp_adapter.errors import SettingsError
from dp_adapter.training.config import DEFAULT_LOSSES, from_tables, read, to_tables

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "training").glob("*.toml"))


def plain(**more: Any) -> dict[str, Any]:
    tables = {"out": "runs/a", "base": {"model": "base"}, "data": {"shards": ["*.tar"]}}
    return {**tables, "stage": [{"kind": "iea", "steps": 3}], **more}


WRONG = {
    "stagee": (plain(stagee=1), "stagee: there is no such key. Did you mean 'stage'?"),
    "data": (plain(data={"shard": []}), "data.shard: .*'shards'"),
    "resolution": (
        plain(data={"shards": ["a"], "resolution": "512"}),
        "data.resolution: '512' is text, not a number. Use 512",
    ),
    "multiple": (plain(data={"shards": ["a"], "resolution": 500}), "500 is no multiple of 64. Take 448"),
    "bool": (plain(seed=True), "seed: true is not a number"),
    "list": (plain(edits="smiling"), "edits: 'smiling' is not a list. Write it in brackets"),
    "missing": (plain(base={}), "base.model: is missing"),
    "kind": (
        plain(stage=[{"kind": "ieaa", "steps": 1}]),
        r"stage\[0\].kind: 'ieaa' is not one of iea, tca, ffb. Did you mean 'iea'",
    ),
    "steps": (plain(stage=[{"kind": "iea", "steps": 0}]), r"stage\[0\].steps: 0 is below the minimum 1. Use 1 or more"),
    "loss": (plain(stage=[{"kind": "iea", "steps": 1, "losses": {"fare": 1}}]), r"stage\[0\].losses.fare: .*'fair'"),
    "share": (
        plain(stage=[{"kind": "iea", "steps": 1, "losses": {"text_off": 1.5}}]),
        "text_off: 1.5 is above the maximum 1",
    ),
    "none": (plain(stage=[]), "stage: there is none"),
    "gated": (plain(adapter={"gated": True}), "adapter.encoder: the gated pathway takes TransFace's"),
    "beside": (
        plain(adapter={"gated": True, "encoder": "transface"}, stage=[{"kind": "iea", "steps": 1}]),
        r"stage\[0\].losses.localisation: the gated pathway has no attention beside the text's.*Take 0",
    ),
    "transface": (plain(adapter={"encoder": "transface"}), "Set gated = true"),
    "tca": (plain(adapter={"tca_rank": 0}, stage=[{"kind": "tca", "steps": 1}]), "trains a TCA that is not there"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_run_is_refused_in_words(name: str) -> None:
    tables, words = WRONG[name]
    with pytest.raises(SettingsError, match=words):
        from_tables(tables)


def test_losses_are_those_of_the_stage_where_it_does_not_say_others() -> None:
    stages = [{"kind": "iea", "steps": 1, "losses": {"localisation": 0}}, {"kind": "tca", "steps": 1}]
    config = from_tables(plain(stage=stages))
    iea, tca = (stage.losses for stage in config.stage)
    assert (iea.face, iea.face_only, iea.text_off, iea.localisation) == (1.0, 0.5, 0.5, 0.0)
    assert tca == DEFAULT_LOSSES["tca"]
    assert (tca.background, tca.consistency, tca.swap, tca.face) == (1.0, 0.4, 0.6, 0.0)
    joint = DEFAULT_LOSSES["ffb"]
    assert (joint.fair, joint.edit, joint.identity) == (0.01, 0.02, 0.1)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_valid_and_take_changes(path: Path) -> None:
    config = read(path, ["stage.1.steps=7", "base.model=/some/where", "data.shards=['x/*.tar']", "seed=3"])
    assert [stage.kind for stage in config.stage] == ["iea", "tca", "ffb"]
    assert (config.stage[1].steps, config.base.model, config.data.shards, config.seed) == (
        7,
        "/some/where",
        ("x/*.tar",),
        3,
    )
    assert to_tables(config)["stage"][2]["losses"]["consistency"] == 0.4


@pytest.mark.parametrize("change", ["stage.5.steps=1", "seed", "seed.x=1", "stage=", "stage.0=1"])
def test_changes_that_lead_nowhere(change: str) -> None:
    with pytest.raises(SettingsError):
        read(EXAMPLES[0], [change])


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("out = \n")
    with pytest.raises(SettingsError, match="is no TOML"):
        read(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        read(tmp_path / "none.toml")
