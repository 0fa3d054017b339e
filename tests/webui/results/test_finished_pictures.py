"""Finished pictures in the fake host: judged, chosen, compared, left out, and made anew at the face."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dp_adapter.modes import TABLE, ModeFacts, resolve_mode
from dp_adapter.session.results.best_of import STRIDE
from dp_adapter.settings import Settings
from tests.hosts.protocol import same_state, state_of
from tests.webui import fake_jobs, fake_webui, hooked_script

pytest.importorskip("starlette", reason="the hosts bring it")
ANOTHER, A_THIRD = 7 + STRIDE, 7 + 2 * STRIDE
Picture = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(scope="module")
def faces(portrait: Path) -> dict[str, Picture]:
    """One person, less and less alike; and none."""
    with Image.open(portrait) as picture:
        small = picture.convert("RGB").resize((256, 256))
    return {
        "same": np.asarray(small),
        "near": np.asarray(small.filter(ImageFilter.GaussianBlur(2))),
        "far": np.asarray(small.filter(ImageFilter.GaussianBlur(4))),
        "none": np.full((256, 256, 3), 90, np.uint8),
    }


@pytest.fixture
def host(adapter_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fake host; ``job(request, **settings)`` makes a job, beside whose script ``others`` run."""
    (tmp_path / "outputs").mkdir()
    with hooked_script.registered(adapter_path, tmp_path, monkeypatch) as ours:
        fake_jobs.installed_into(ours.fake)
        ours.model.sampled_by = ours.unet
        others: list[Any] = []
        outputs = tmp_path / "outputs"

        def job(request: Any = "", **settings: Any) -> fake_jobs.Job:
            script = ours.script.DPAdapterScript()
            script.args_from, script.args_to = 1, 3
            args = [0, request, False, *[arg for one in others for arg in one.args]]
            settings = {"outpath_samples": str(outputs), **settings}
            return fake_jobs.Job(ours.model, fake_jobs.Runner([*others, script]), args, **settings)

        yield SimpleNamespace(
            job=job, unet=ours.unet, others=others, fake=ours.fake, outputs=outputs,
            done=vars(ours.fake["modules.processing"])["done"], state=vars(ours.fake["modules.shared"])["state"],
        )  # fmt: skip


def by_seed(faces: dict[str, Picture], **names: str) -> Callable[[Any, int], Picture]:
    """What each seed shows: ``s7="near"``; the rest shows nobody."""
    return lambda _job, seed: faces[names.get(f"s{seed}", "none")]


def results(p: Any) -> dict[str, Any]:
    prefix = "DP-Adapter result "
    return {k.removeprefix(prefix): v for k, v in p.extra_generation_params.items() if k.startswith(prefix)}


def test_a_report_per_picture(host: Any, person: dict[str, Any], faces: dict[str, Picture]) -> None:
    p = host.job(
        {**person, "report": {"enabled": True}}, n_iter=2, batch_size=2,
        picture_of=by_seed(faces, s7="same", s8="none", s9="far"),
    )  # fmt: skip
    p.run()
    assert not p.reported and len(host.done) == 1, "one job is enough"
    grid, *texts = p.processed.infotexts
    assert "result" not in grid
    assert "DP-Adapter result likeness: 0.9" in texts[0] and "DP-Adapter result faces: 1" in texts[0]
    assert "result likeness: no face" in texts[1] and "result faces: 0" in texts[1] and "result faces: 1" in texts[2]
    assert 'result judge: "SFace, which also guided the picture"' in texts[0], "the adapter was made for SFace"
    alike = results(p)["likeness"]
    assert len(alike) == 4 and float(alike[0]) > float(alike[2]) and alike[1] == alike[3] == "no face"
    assert "picture 1 (seed 7): 1 face, likeness 0.9" in p.processed.comments
    assert sorted(path.name for path in host.outputs.iterdir()) == ["0-7.png", "1-8.png", "2-9.png", "3-10.png"]
    p.run()  # as Loopback does
    assert results(p)["likeness"] == alike and "result likeness: 0.9" in p.processed.infotexts[1]


def test_off_measures_nothing(host: Any, person: dict[str, Any], faces: dict[str, Picture]) -> None:
    for request in (person, {**person, "enabled": False, "report": {"enabled": True, "best_of": 4}}):
        p = host.job(request, picture_of=by_seed(faces, s7="same"))
        p.run()
        assert not p.reported and not results(p) and not p.comments
    assert len(host.done) == 2


def test_the_best_of_several(host: Any, person: dict[str, Any], faces: dict[str, Picture]) -> None:
    shown = by_seed(faces, s7="far", **{f"s{ANOTHER}": "same", f"s{A_THIRD}": "near"})
    before = state_of(host.unet.module)
    p = host.job({**person, "report": {"best_of": 3}}, picture_of=shown)
    p.run()
    assert not p.reported and not any(job.reported for job in host.done)
    assert [job.seed for job in host.done] == [ANOTHER, A_THIRD, 7], "the job itself ends last"
    assert np.array_equal(np.asarray(p.processed.images[0]), faces["same"])
    assert p.processed.all_seeds == [ANOTHER] and p.seed == 7
    (text,) = p.processed.infotexts
    assert f"Seed: {ANOTHER}" in text and "result candidate: 2 of 3" in text
    assert "best of" not in text, "made again, the picture needs no choice"
    assert [path.name for path in host.outputs.iterdir()] == [f"0-{ANOTHER}.png"], "only what is kept is saved"
    assert same_state(before, state_of(host.unet.module))
    assert vars(host.fake["modules.processing"])["params_txt"] == ["a person"]
    state = host.state
    assert (state.job, state.job_no, state.job_count, state.textinfo) == ("job", 1, 1, None)
    assert vars(host.fake["modules.shared"])["opts"].data.get("multiple_tqdm") is None
    assert not hasattr(vars(host.fake["modules.shared"])["cmd_opts"], "no_prompt_history")
    assert vars(host.fake["modules.sd_models"])["merged"] == [0.5, 0.5], "token merging goes on"
    again = host.job({**person}, seed=ANOTHER, picture_of=shown)
    again.run()
    assert np.array_equal(np.asarray(again.processed.images[0]), faces["same"])


def test_candidates_are_the_same_job(host: Any, person: dict[str, Any], faces: dict[str, Picture]) -> None:
    """With everything but the seed: other scripts, hires pass, X/Y/Z's values; and what others hung on ``p``."""
    seen: list[tuple[str, bool]] = []
    sampled: list[Any] = []

    class Other(fake_webui.Script):
        args_from, args_to, args = 3, 4, ("its own",)

        def title(self) -> str:
            return "Other"

        def process(self, p: Any, own: str) -> None:
            assert own == "its own"
            seen.append(("process", p is host.running))
            bound = p.sample

            def sample(*args: Any) -> Any:
                sampled.append(p)
                return bound(*args)

            p.sample = sample

        def postprocess(self, p: Any, processed: Any, own: str) -> None:
            seen.append(("postprocess", p is host.running))

    host.others.append(Other())
    request = {**person, "report": {"best_of": 2, "least": 0.99}, "hires": {"use": "off"}}
    host.running = host.job(
        request, picture_of=by_seed(faces, s7="none", s8="none"), batch_size=2, do_not_save_grid=True,
        enable_hr=True, hr_upscale_to_x=256, hr_upscale_to_y=256, hr_checkpoint_name=None, all_hr_prompts=["hr"] * 2,
        all_hr_negative_prompts=["no"] * 2, dp_adapter_overrides={"weight": 0.5},
    )  # fmt: skip
    host.running.run()
    first, second, outer = host.done
    assert not any(job.reported for job in host.done)
    assert sampled == [outer, first, second], "nothing samples another job than its own"
    assert (first.seed, second.seed) == (7 + STRIDE, 8 + STRIDE) and outer is host.running
    for inner in (first, second):
        assert inner.enable_hr and inner.hr_prompt == "hr" and inner.batch_size == 1
        assert inner.script_args[1]["weight"] == 0.5 and inner.script_args[3] == "its own"
        assert inner.script_args[1]["report"]["best_of"] == 1 and inner.script_args[1]["hires"]["use"] == "off"
        assert inner.override_settings == {} and inner.do_not_save_samples
    # Others end this job before each inner one and take it up again after the last picture of the batch.
    kinds = [kind for kind, outer_itself in seen if not outer_itself]
    assert kinds == ["postprocess", "process", "postprocess"] * 2 + ["process"]
    assert [kind for kind, outer_itself in seen if outer_itself] == ["process", "postprocess"]


def test_good_enough_ends_the_search(host: Any, person: dict[str, Any], faces: dict[str, Picture]) -> None:
    shown = by_seed(faces, s7="none", **{f"s{ANOTHER}": "same"})
    p = host.job({**person, "report": {"best_of": 8, "least": 0.9}}, picture_of=shown)
    p.run()
    assert len(host.done) == 2 and results(p)["candidate"] == ["2 of 2"]


def test_an_interrupted_candidate_is_dropped(host: Any, person: dict[str, Any], faces: dict[str, Picture]) -> None:
    calls: list[int] = []

    def interrupt(_step: int) -> None:
        calls.append(0)
        if len(calls) == 3:  # the first candidate's first step
            host.state.interrupted = True

    host.unet.before_call = interrupt
    p = host.job({**person, "report": {"best_of": 8, "drift": True}}, picture_of=by_seed(faces, s7="far"))
    p.run()
    assert len(host.done) == 2 and not p.reported
    assert "candidate" not in results(p) and results(p)["faces"] == ["1"]
    assert p.processed.all_seeds == [7] and "drift outside" not in results(p)
    host.state.interrupted = False


def test_a_candidate_that_fails_leaves_the_picture(
    host: Any, person: dict[str, Any], faces: dict[str, Picture]
) -> None:
    before = state_of(host.unet.module)
    calls: list[int] = []

    def fail(_step: int) -> None:
        calls.append(0)
        if len(calls) == 4:
            raise RuntimeError("out of memory")

    host.unet.before_call = fail
    p = host.job({**person, "report": {"best_of": 4}}, picture_of=by_seed(faces, s7="far"))
    p.run()
    assert "candidate 2 failed (RuntimeError: out of memory)" in p.processed.comments
    assert p.processed.all_seeds == [7] and results(p)["faces"] == ["1"]
    assert same_state(before, state_of(host.unet.module)) and host.state.job_count == 1
    assert vars(host.fake["modules.errors"] if "modules.errors" in host.fake else sys.modules["modules.errors"])[
        "reports"
    ]


def test_pictures_below_are_left_out_and_not_saved(
    host: Any, person: dict[str, Any], faces: dict[str, Picture]
) -> None:
    report = {"least": 0.8, "below": "skip"}
    p = host.job({**person, "report": report}, n_iter=3, picture_of=by_seed(faces, s7="none", s8="same", s9="none"))
    p.run()
    assert not p.reported
    assert [path.name.split("-")[1] for path in host.outputs.iterdir()] == ["8.png"]
    assert p.outpath_samples == str(host.outputs)
    grid, picture = p.processed.images
    assert np.array_equal(np.asarray(picture), faces["same"]) and grid.size == (8, 8)
    assert len(p.processed.infotexts) == 2 and "Seed: 8" in p.processed.infotexts[1]
    assert p.processed.all_seeds == [8] and results(p)["faces"] == ["1"] and results(p)["left out"] == "2 of 3"
    assert "picture 1 is left out and not saved" in p.processed.comments
    nothing = host.job({**person, "report": report}, picture_of=by_seed(faces))
    nothing.run()
    assert nothing.processed.images == [] and nothing.processed.infotexts == []


def test_drift_is_measured_outside_the_region(host: Any, person: dict[str, Any]) -> None:
    def shown(job: Any, _seed: int) -> Picture:
        """The job with the adapter is lighter on the right half, by 51 of 255; and by 5.1 on the left."""
        picture = np.full((128, 128, 3), 100, np.uint8)
        if hasattr(job, "dp_adapter_run"):
            picture[:, 64:] += 51
            picture[:, :64] += 5
        return picture

    p = host.job({**person, "report": {"drift": True}}, picture_of=shown)
    p.run()
    plain, outer = host.done
    assert outer is p and plain.seed == 7 and not plain.reported and not hasattr(plain, "dp_adapter_run")
    measured = results(p)
    assert float(measured["drift outside"][0]) == pytest.approx((5 / 255) ** 2, abs=1e-6)
    assert float(measured["drift inside"][0]) == pytest.approx((51 / 255) ** 2, abs=1e-6)
    assert "outside the identity's region it differs by 0.000384 (mean square, 34.2 dB)" in p.processed.comments
    everywhere = host.job({**person, "regions": [{"kind": "full"}], "report": {"drift": True}}, picture_of=shown)
    everywhere.run()
    assert results(everywhere)["drift outside"] == ["nothing is outside"]


FACES = {"face_pass": {"use": "on", "size": 256, "strength": 0.3, "weight": 0.7}}


def test_the_face_pass(host: Any, person: dict[str, Any], faces: dict[str, Picture]) -> None:
    p = host.job({**person, **FACES}, picture_of=by_seed(faces, s7="same"), steps=3)
    p.run()
    inner, outer = host.done
    assert outer is p and not p.reported and not inner.reported
    assert isinstance(inner, fake_jobs.Img2Img) and (inner.width, inner.height) == (256, 256)
    assert inner.denoising_strength == 0.3 and inner.steps == 3 and inner.seed == 7 and inner.sampler_name == "Euler a"
    assert [one.title() for one in inner.scripts.alwayson_scripts] == ["DP-Adapter"] and inner.do_not_save_samples
    request = inner.script_args[1]
    assert request["weight"] == 0.7 and request["regions"][0]["kind"] == "full" and request["span"]["start"] == 0
    assert request["face_pass"]["use"] == "off"
    assert results(p)["face pass"] == ["1 of 1"] and "DP-Adapter result face pass: 1 of 1" in p.processed.infotexts[0]
    assert "DP-Adapter face pass: on" in p.processed.infotexts[0], "what was asked for is there too"
    change = np.asarray(p.processed.images[0]).astype(int) - faces["same"]
    assert 0 < np.abs(change).mean() < 0.5, "it came back lighter by 20, which is no reason for another colour"


def test_no_face_pass_where_adetailer_does_it(host: Any) -> None:
    from dp_adapter.webui.results import face_pass

    def wanted(settings: Settings) -> bool:
        return face_pass.is_wanted(host.job(), settings, resolve_mode(settings, TABLE[settings.mode], ModeFacts()))

    class ADetailer(fake_webui.Script):
        args_from, args_to = 3, 5
        args: Any = (True, {"ad_model": "face_yolov8n.pt"})

        def title(self) -> str:
            return "ADetailer"

    full_body = Settings(mode="full_body")
    assert wanted(full_body) and not wanted(Settings())
    host.others.append(ADetailer())
    assert not wanted(full_body) and wanted(Settings.from_dict(FACES)), "asked for by name"
    off = {"ad_model": "x", "ad_tab_enable": False}
    for idle in ((False, {"ad_model": "x"}), (True, {"ad_model": "None"}), (True, off)):
        ADetailer.args = idle
        assert wanted(full_body)


def test_a_modes_words_about_the_whole_picture_stay_out_of_the_pass(
    host: Any, person: dict[str, Any], faces: dict[str, Picture]
) -> None:
    p = host.job({**person, "mode": "full_body"}, picture_of=by_seed(faces, s7="same"))
    p.run()
    inner, _ = host.done
    assert "full body" in p.sampled[0]["prompts"][0] and inner.prompt == "a person" == p.all_prompts[0]
    assert inner.sampled[0]["prompts"] == ["a person"]
    assert inner.script_args[1]["mode"] == "portrait" and results(p)["face pass"] == ["1 of 1"]
    aged = host.job(
        {**person, **FACES, "mode": "age", "target_age": 70, "reference_age": 40},
        picture_of=by_seed(faces, s7="same"),
    )
    aged.run()
    inner = host.done[2]
    assert inner.sampled[0]["prompts"] == aged.sampled[0]["prompts"] != ["a person"] and inner.prompt == "a person"


def test_nothing_of_it_inside_adetailers_pass(host: Any, person: dict[str, Any], faces: dict[str, Picture]) -> None:
    request = {**person, **FACES, "report": {"enabled": True, "best_of": 4, "drift": True}}
    p = host.job(request, _ad_inner=True, picture_of=by_seed(faces, s7="same"))
    p.run()
    assert host.done == [p] and not p.reported and not results(p)
    assert p.extra_generation_params["DP-Adapter weight"] == "1", "the identity acts in it"


def test_a_copy_of_the_job_ends_and_begins(host: Any, person: dict[str, Any], faces: dict[str, Picture]) -> None:
    """As ADetailer has all scripts do in the middle of a job."""
    import copy

    class Copying(fake_webui.Script):
        args_from, args_to, args = 3, 3, ()

        def title(self) -> str:
            return "Copying"

        def postprocess_image(self, p: Any, pp: Any) -> None:
            p.scripts.postprocess(copy.copy(p), fake_jobs.Processed(p, []))
            p.scripts.process(copy.copy(p))

    host.others.append(Copying())
    p = host.job({**person, "report": {"enabled": True, "masks": True}}, n_iter=2, picture_of=by_seed(faces, s7="same"))
    p.run()
    assert not p.reported
    assert "result likeness: 0.9" in p.processed.infotexts[1] and "result likeness: no face" in p.processed.infotexts[2]


def test_face_pass_and_candidates_together(host: Any, person: dict[str, Any], faces: dict[str, Picture]) -> None:
    shown = by_seed(faces, s7="none", **{f"s{ANOTHER}": "same"})
    p = host.job({**person, **FACES, "report": {"best_of": 2, "drift": True}}, picture_of=shown)
    p.run()
    assert not p.reported and not any(job.reported for job in host.done)
    assert [type(job).__name__ for job in host.done] == ["Img2Img", "Job", "Job", "Job"]
    assert results(p)["face pass"] == ["1 of 1"], "of the candidate that is kept"
    assert results(p)["candidate"] == ["2 of 2"] and float(results(p)["drift outside"][0]) < 0.01
