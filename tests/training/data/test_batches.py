"""Batches: which sample comes when, whose photo is the reference, regions of targets, damaged shards."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dp_adapter.errors import TrainingError
from dp_adapter.identity.faces.face_parsing import FACE_SKIN, HAIR
from dp_adapter.training.config import AdapterConfig, DataConfig
from dp_adapter.training.data.batches import Batch, Examples, draw_masks, iterate_batches, make_example, masks_of
from dp_adapter.training.data.shards import Shards
from tests.training import made

PLAN = DataConfig(("-",), resolution=64, drop_identity=0.0, drop_text=0.0, drop_both=0.0)


def examples(pattern: str, plan: DataConfig = PLAN) -> Examples:
    return Examples(Shards([pattern]), plan, AdapterConfig(), (0, 0))


def same(one: Batch, other: Batch) -> bool:
    values = [(value, vars(other)[name]) for name, value in vars(one).items()]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in values)


def test_a_batch_is_a_function_of_its_number_and_process(pattern: str) -> None:
    run = list(iterate_batches(examples(pattern), 2, 0, 6, 0, 2, 0))
    late = list(iterate_batches(examples(pattern), 2, 4, 2, 0, 2, 0))
    assert [same(one, other) for one, other in zip(run[4:], late, strict=True)] == [True, True]
    other = list(iterate_batches(examples(pattern), 2, 0, 6, 1, 2, 0))
    once = [caption for pair in zip(run[:3], other[:3], strict=True) for batch in pair for caption in batch.captions]
    assert len(set(once)) == 12  # together both processes see every sample once before any comes again


def test_references_are_other_photos_of_the_same_person(pattern: str) -> None:
    found = examples(pattern)
    shards = found.shards
    for position in range(24):
        number = found.number_at(position)
        row = found[position]
        person = shards.entries[number].person
        theirs = [found.features(one) for one in shards.of_person[person] if one != number]
        assert any(torch.equal(row["features"], one) for one in theirs)
        assert not any(torch.equal(row["others"], one) for one in theirs)
        assert float(row["features"].norm()) == pytest.approx(1, abs=1e-5)


def test_shares_of_dropped_conditions(pattern: str) -> None:
    found = examples(pattern, replace(PLAN, drop_identity=0.2, drop_text=0.3, drop_both=0.1))
    found.cached = {number: make_example(found.shards.sample(number), PLAN) for number in range(len(found.shards))}
    rows = [found[position] for position in range(400)]
    without_text = [row["captions"] == "" for row in rows]
    without_identity = [not bool(row["features"].any()) for row in rows]
    assert without_identity == [not bool(row["with_identity"]) for row in rows]
    assert np.mean(without_text) == pytest.approx(0.4, abs=0.07)
    assert np.mean(without_identity) == pytest.approx(0.3, abs=0.07)
    assert np.mean(np.logical_and(without_text, without_identity)) == pytest.approx(0.1, abs=0.05)


def test_regions_are_the_face_and_with_hair_of_this_person() -> None:
    labels = np.zeros((80, 80), np.uint8)
    labels[20:40, 30:50] = FACE_SKIN
    labels[10:20, 28:52] = HAIR
    labels[60:70, 0:10] = FACE_SKIN  # somebody else
    labels[60:70, 70:80] = HAIR
    face, with_hair = draw_masks(labels, (30, 20, 50, 40), 0.0, 0.0)
    assert face.sum() == 20 * 20
    assert with_hair.sum() == 20 * 20 + 10 * 24
    grown, _ = draw_masks(labels, (30, 20, 50, 40), 0.1, 0.05)
    assert grown[18, 40] > 0.5
    assert 0 < grown[17, 40] < 0.5


def test_a_wide_picture_is_cut_around_the_face() -> None:
    sample = made.sample(0, 0, side=64)
    wide = np.concatenate([np.zeros_like(sample.picture), sample.picture, np.zeros_like(sample.picture)], 1)
    labels = np.concatenate([np.zeros_like(sample.labels), sample.labels, np.zeros_like(sample.labels)], 1)
    x0, y0, x1, y1 = sample.box
    moved = replace(
        sample,
        picture=wide,
        labels=labels,
        box=(x0 + 64, y0, x1 + 64, y1),
        points=sample.points + np.array([64, 0], np.float32),
    )
    one, other = make_example(sample, PLAN), make_example(moved, PLAN)
    assert one.pixels is not None
    assert other.pixels is not None
    assert torch.equal(one.pixels, other.pixels)
    assert torch.equal(masks_of(sample, PLAN), masks_of(moved, PLAN))
    assert torch.allclose(one.points, other.points)
    assert other.size_and_crop.tolist() == [64, 192, 0, 64]
    small = make_example(moved, replace(PLAN, resolution=128))
    assert torch.allclose(small.points, 2 * one.points)


def test_damaged_and_missing_shards_are_told(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="No shard is named"):
        Shards([str(tmp_path / "*.tar")])
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"no tar at all")
    with pytest.raises(TrainingError, match="is no shard"):
        Shards([str(broken)])
    whole = Path(pattern).parent / "000.tar"
    cut = tmp_path / "cut.tar"
    with tarfile.open(whole) as source, tarfile.open(cut, "w") as target:
        for member in source.getmembers()[:-1]:
            target.addfile(member, source.extractfile(member))
    with pytest.raises(TrainingError, match="has no"):
        Shards([str(cut)])
    transface = Examples(Shards([pattern]), PLAN, AdapterConfig(encoder="arcface"), (0, 0))
    with pytest.raises(TrainingError, match=r"no embedding 'insightface'.*it has sface, transface"):
        transface.features(0)
