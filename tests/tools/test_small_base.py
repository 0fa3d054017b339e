"""The small base's recipe: where its autoencoder starts, its pool of scenes, and a run that goes on."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dp_adapter.core.latent_gate import LatentGate
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.prompts.clip_tokenizer import clip_tokenizer
from dp_adapter.identity.faces.face import norm_crop
from dp_adapter.training.differentiable_faces import DifferentiableSFace, crop_aligned, crop_warp
from tools.small_base import (
    assemble_pipeline,
    mixed_faces,
    portraits,
    scene_pool,
    scenes,
    train_base,
    train_decoder,
    train_gate,
    train_vae,
)

SHIPPED = Path(__file__).parents[2] / "models" / "demo" / "dp_small_base.safetensors"


@pytest.fixture(scope="module")
def people() -> list[portraits.Portrait]:
    """Drawn heads: an oval of skin with hair on a bust."""
    y, x = np.mgrid[0:240, 0:192]
    labels = np.zeros((240, 192), np.uint8)
    labels[np.hypot((x - 96) / 1.0, (y - 80) / 1.2) < 62] = 1
    labels[np.hypot((x - 96) / 0.8, (y - 95) / 1.1) < 55] = 3
    labels[y > 170] = 4
    palette = np.array([[90, 90, 200], [60, 30, 20], [220, 170, 140], [220, 170, 140], [40, 40, 60], [0, 0, 0]])
    points = np.array([[75, 85], [117, 85], [96, 105], [80, 130], [112, 130]], np.float32)
    box = np.array([52, 35, 88, 120], np.float32)
    random = np.random.default_rng(0)
    return [
        portraits.measure(
            f"p{i}",
            i,
            palette[labels].astype(np.uint8),
            labels,
            points,
            box,
            random.normal(size=128).astype(np.float32),
        )
        for i in range(3)
    ]


def test_the_autoencoder_starts_from_the_mean_colours() -> None:
    torch.manual_seed(0)
    net = train_vae.build().eval()
    colours = torch.tensor([[-0.5, 0.2, 0.7], [0.8, -0.8, 0.0]])
    pictures = colours[:, :, None, None].expand(2, 3, 128, 128).contiguous()
    with torch.no_grad():
        latents = net.encode(pictures).latent_dist.mean
        decoded = net.decode(latents).sample
    assert (latents[:, :3, 8, 8] - colours).abs().max() < 0.1
    assert (decoded[:, :, 64, 64] - colours).abs().max() < 0.15


def test_whitened_latents_have_the_deviation_that_hosts_expect() -> None:
    torch.manual_seed(0)
    net = train_vae.build().eval()
    pictures = torch.nn.functional.interpolate(torch.rand(6, 3, 8, 8) * 2 - 1, size=64, mode="bilinear")
    with torch.no_grad():
        before = net.decode(net.encode(pictures).latent_dist.mean).sample
        train_vae.whiten(net, pictures)
        latents = net.encode(pictures).latent_dist.mean
        after = net.decode(latents).sample
    flat = latents.permute(1, 0, 2, 3).flatten(1) * 0.18215
    assert torch.cov(flat) == pytest.approx(torch.eye(4).numpy(), abs=1e-2)
    assert (before - after).abs().max() < 1e-2


def test_a_faces_features_count_where_the_face_is_large() -> None:
    torch.manual_seed(0)
    net, sface = train_vae.build(), DifferentiableSFace()
    pictures = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4) * 2 - 1, size=64, mode="bilinear")
    small = np.array([[28, 28], [34, 28], [31, 31], [29, 34], [33, 34]], np.float32)
    points = np.stack([small, (small - 31) * 4 + 31])
    warps = torch.from_numpy(np.stack([crop_warp(five, 64, 64, 112) for five in points]))
    both = (torch.from_numpy(points), warps)
    losses = train_vae.loss_of(net, sface, pictures, *both, facing=0.5)
    assert set(losses) == {"size", "l1", "edges", "colour", "face"} and losses["face"] > 0
    assert "face" not in train_vae.loss_of(net, sface, pictures, *both, facing=0.0)
    none = train_vae.loss_of(net, sface, pictures[:1], both[0][:1], warps[:1], facing=0.5)
    assert none["face"] == 0


def test_the_pool_gives_each_file_once(tmp_path: Path, people: list[portraits.Portrait]) -> None:
    tokenizer = clip_tokenizer()
    chunk = scene_pool.make_scenes(np.random.default_rng(5), people, tokenizer, 24)
    scene_pool.write(tmp_path / "00000.safetensors", chunk)
    found = scene_pool.Pool(tmp_path)
    (back,) = found.new()
    assert list(found.new()) == [] and len(found) == 1
    for name, value in vars(chunk).items():
        assert torch.equal(getattr(back, name), value), name
    assert torch.equal(found.ids(), chunk.ids)
    assert chunk.pictures.shape == (24, 128, 128, 3) and chunk.ids.shape == (24, scene_pool.CAPTIONS, 77)
    captions = tokenizer.batch_decode(chunk.ids[:, 0], skip_special_tokens=True)
    assert all("photo of" in caption for caption in captions)
    two = chunk.vectors[:, 1].any(-1)
    assert [" two people" in caption for caption in captions] == two.tolist() and two.any()
    assert chunk.vectors[:, 0].norm(dim=-1) == pytest.approx(np.ones(24), abs=1e-5)
    assert not chunk.faces[~two, 1].any() and not chunk.points[~two, 1].any()


def test_warps_of_the_pool_lead_to_the_faces(people: list[portraits.Portrait]) -> None:
    chunk = scene_pool.make_scenes(np.random.default_rng(1), people, clip_tokenizer(), 1)
    crop = crop_aligned(train_vae.to_tensor(chunk.pictures), chunk.warps[:, 0], 112)[0]
    from_opencv = norm_crop(chunk.pictures[0].numpy(), chunk.points[0, 0].numpy(), 112)
    assert (crop.permute(1, 2, 0) * 127.5 + 127.5 - torch.from_numpy(from_opencv)).abs().mean() < 2


def test_other_photos_of_a_person_are_references(people: list[portraits.Portrait]) -> None:
    twins = [people[0], replace(people[1], person=people[0].person)]
    chunk = scene_pool.make_scenes(np.random.default_rng(1), twins, clip_tokenizer(), 12)
    same = (chunk.vectors[:, 0] == chunk.references[:, 0]).all(-1)
    assert same.any() and not same.all()


def test_mixed_faces_have_vectors_of_their_own(people: list[portraits.Portrait]) -> None:
    crowd = mixed_faces.mix_people(np.random.default_rng(4), people, 3)
    assert all("+" in one.person for one in crowd)
    assert [np.linalg.norm(one.sface) for one in crowd] == pytest.approx([1, 1, 1], abs=1e-5)


def test_landmarks_move_with_the_features(people: list[portraits.Portrait]) -> None:
    marked = replace(people[0], picture=np.zeros_like(people[0].picture))
    for number, (x, y) in enumerate(marked.points.round().astype(int)):
        cv2.circle(marked.picture, (int(x), int(y)), 3, (50.0 + 40 * number, 0, 0), -1)
    moved = mixed_faces.reshape_features(np.random.default_rng(3), marked)
    assert np.abs(moved.points - marked.points).max() > 1.5
    for number, point in enumerate(moved.points):
        rows, columns = np.nonzero(np.abs(moved.picture[..., 0] - (50 + 40 * number)) < 4)
        assert np.hypot(np.median(columns) - point[0], np.median(rows) - point[1]) < 1.5


def test_a_mixed_face_has_the_others_features_in_a_tone_between(people: list[portraits.Portrait]) -> None:
    one, other = people[0], replace(people[1], picture=people[1].picture.copy())
    other.picture[148:160, 120:168] = 250  # a mouth; portraits are widened by 48 columns
    other.picture[..., 0] *= 0.5
    mixed = mixed_faces.blend_faces(one, other, 0.5)
    assert mixed is not None
    red = [float(picture[130, 144, 0]) for picture in (one.picture, mixed, other.picture)]
    assert red[0] > red[1] > red[2]
    assert mixed[154, 144, 2] > one.picture[154, 144, 2] + 20
    assert np.abs(mixed - one.picture)[200:].max() == 0  # clothes are the first one's


def test_the_middle_of_a_face_counts_more() -> None:
    points = torch.tensor([[[40.0, 40], [60, 40], [50, 50], [42, 60], [58, 60]]])
    weights = train_vae.face_weights(points, 128)
    assert weights.shape == (1, 1, 128, 128)
    assert weights[0, 0, 50, 50] > 0.99 and 0.5 < weights[0, 0, 50, 70] < 0.8 and weights[0, 0, 110, 110] < 0.01


def test_a_face_mask_is_the_owners_face(people: list[portraits.Portrait]) -> None:
    person = scenes.Person(0, "red", "on the left", None, None, None, False)
    plan = scenes.Plan("portrait", "blue", "plain", False, (person,))
    scene = scenes.compose(np.random.default_rng(2), plan, people)
    masks = scene_pool.face_masks(scene.labels, scene.owner)
    x, y = scene.points[0].mean(0) / 8
    assert masks[0, int(y), int(x)] == 1 and masks[0, :, -1].max() == 0 and masks[1].max() == 0


@pytest.fixture
def filled(tmp_path: Path, people: list[portraits.Portrait]) -> Path:
    """A folder with an untrained autoencoder and a pool of 6 scenes."""
    torch.manual_seed(0)
    (tmp_path / "pool").mkdir()
    scene_pool.write(
        tmp_path / "pool" / "0.safetensors",
        scene_pool.make_scenes(np.random.default_rng(3), people, clip_tokenizer(), 6),
    )
    net = train_vae.build()
    torch.save(net.state_dict(), tmp_path / "vae.pt")
    return tmp_path


def test_an_identity_acts_in_a_face_or_everywhere_or_not_at_all(filled: Path) -> None:
    torch.manual_seed(0)
    batches = train_base.Batches(
        scene_pool.Pool(filled / "pool"), train_vae.load(filled / "vae.pt"), torch.device("cpu")
    )
    assert batches.load_new() == 1 and batches.load_new() == 1
    batch = batches.next(200)
    least, most = batch.gates.amin((1, 2, 3)), batch.gates.amax((1, 2, 3))
    nowhere, everywhere = most == 0, least == 1
    assert 0.3 < nowhere.float().mean() < 0.5
    assert 0.15 < everywhere.float().mean() < 0.4
    partly = ~nowhere & ~everywhere
    assert (batch.gates[partly] * batch.faces[partly]).sum() > 0.4 * batch.faces[partly].sum()
    assert (batch.large <= ~nowhere).all() and batch.large.any()
    assert batch.references.shape == (200, 128) and not torch.equal(batch.references[0], batch.references[1])


def test_a_likeness_that_is_asked_for_reaches_the_adapter(filled: Path) -> None:
    torch.manual_seed(0)
    device = torch.device("cpu")
    net = train_vae.load(filled / "vae.pt").requires_grad_(False)
    batches, model = train_base.Batches(scene_pool.Pool(filled / "pool"), net, device), train_base.Joint()
    batches.load_new()
    asked = Namespace(likeness=0.1, likeness_below=1000, faces=3.0, middle=0.5, device="cpu")
    objective = train_base.Objective(net, asked)
    batch = batches.next(6)
    assert set(objective(model, batch, liking=False)) == {"noise"}
    objective(model, batch, liking=True)["likeness"].backward()
    gradient = model.adapter.get_parameter("projection.proj.0.weight").grad
    assert gradient is not None and gradient.abs().max() > 0


def test_a_run_goes_on(filled: Path) -> None:
    files = {"pool": filled / "pool", "vae": filled / "vae.pt", "out": filled}
    pace = {"minutes": 1e-6, "cooldown": 0.5, "rate": 1e-3, "ema": 0.9, "batch": 2, "threads": 1}
    likeness = {"likeness": 0.1, "likeness_from": 0.0, "likeness_below": 400, "likeness_every": 2}
    run = Namespace(**files, **pace, **likeness, faces=3.0, middle=0.0, look=9, device="cpu", seed=0, compile=False)
    train_base.train(run)
    first = torch.load(filled / "state.pt", weights_only=True)
    train_base.train(run)  # its time is spent: nothing more happens
    assert torch.load(filled / "state.pt", weights_only=True)["step"] == first["step"] == 1
    train_base.train(Namespace(**(vars(run) | {"minutes": first["spent"] / 60 + 1e-6})))
    second = torch.load(filled / "state.pt", weights_only=True)
    assert second["step"] == 2 and second["spent"] > first["spent"]
    key = "unet.conv_in.weight"
    assert not torch.equal(first["model"][key], second["model"][key])
    assert not torch.equal(second["ema"][key], second["model"][key])


def test_an_autoencoder_is_trained_and_whitened(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_vae, "WHITENED", 18)  # of a pool of 6; 256 take half a minute
    run = Namespace(pool=filled / "pool", out=filled / "new.pt", minutes=1e-6, batch=2, rate=1e-3, facing=0.3)
    train_vae.train(Namespace(**vars(run), start=filled / "vae.pt", device="cpu", seed=0))
    latents = train_vae.encode(train_vae.load(filled / "new.pt"), next(scene_pool.Pool(filled / "pool").new()).pictures)
    assert latents.std((0, 2, 3)).log().abs().max() < 0.5


def test_a_decoder_learns_from_what_the_base_makes(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_decoder, "STEPS", 2)
    monkeypatch.setattr(train_decoder, "AT_ONCE", 3)
    torch.manual_seed(0)
    torch.save({"ema": train_base.Joint().state_dict()}, filled / "state.pt")
    files = {name: filled / name for name in ("state.pt", "vae.pt", "pool", "new.pt")}
    run = Namespace(
        state=files["state.pt"], vae=files["vae.pt"], pool=files["pool"], out=files["new.pt"], minutes=1e-6, count=3,
        batch=2, rate=1e-3, device="cpu", threads=1, seed=0,
    )  # fmt: skip
    train_decoder.train(run)
    before, after = (torch.load(files[name], weights_only=True) for name in ("vae.pt", "new.pt"))
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"decoder"}


def test_a_gate_learns_where_faces_are(filled: Path) -> None:
    pipeline = load_pipeline.load(SHIPPED, "cpu", "float32")
    (chunk,) = scene_pool.Pool(filled / "pool").new()
    torch.manual_seed(0)
    data = train_gate.Predictions.join(train_gate.predict_scenes(pipeline, chunk, times=4))
    assert data.predicted.shape == (24, 4, 16, 16) and data.faces.shape == (24, 1, 16, 16)
    late = data.rows(data.progress > 0.3)
    gate = LatentGate(width=16)
    train_gate.train(gate, late, steps=80, batch=16)
    said = gate.logits(late.predicted, late.progress).sigmoid().detach()
    inside, outside = (float((said * share).sum() / share.sum()) for share in (late.faces, 1 - late.faces))
    assert inside > 0.5 > 0.2 > outside
    perfect = train_gate.Predictions(late.predicted, late.progress, said)
    overlaps = [float(one.split(": ")[1]) for one in train_gate.describe(gate, perfect).split(", ")]
    assert overlaps and set(overlaps) == {1.0}


def test_a_decoders_losses_are_about_the_face(filled: Path) -> None:
    held = scene_pool.SceneRows(
        scene_pool.Pool(filled / "pool"), train_decoder.rows_of_large_faces, torch.device("cpu")
    )
    held.load_new()
    rows = held.draw(4)
    photos = train_vae.to_tensor(rows["pictures"])
    teacher = train_decoder.Teacher(DifferentiableSFace(), rows["pictures"], rows["warps"])
    torch.manual_seed(0)
    same = teacher(photos, photos, rows, 0.0)
    assert same["kept"] == 0 and same["adversarial"] == 0 and same["layers"] < 1e-5
    face = train_vae.face_weights(rows["points"], 128) > 0.7
    noise = torch.randn_like(photos)
    inside, outside = (
        teacher(photos + noise * where, photos, rows, 1.0)
        for where in (face, train_vae.face_weights(rows["points"], 128) < 0.01)
    )
    assert inside["layers"] > 0.1 > outside["layers"] and outside["kept"] > 5 * inside["kept"]
    assert inside["adversarial"] != 0 and inside["discriminators"] > 0


def test_the_mean_of_two_states() -> None:
    one, other = ({"w": torch.tensor([x]), "n": torch.tensor([4])} for x in (1.0, 2.0))
    assert assemble_pipeline.average_states([one, other]) == {"w": torch.tensor([1.5]), "n": torch.tensor([4])}


def test_words_that_no_caption_has_say_nothing() -> None:
    embeddings = torch.arange(10.0).reshape(5, 2)
    assemble_pipeline.silence_unknown_words(embeddings, torch.tensor([[1, 3, 4], [1, 4, 4]], dtype=torch.int32))
    assert embeddings.tolist() == [[8, 9], [2, 3], [8, 9], [6, 7], [8, 9]]
