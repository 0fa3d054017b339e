"""A job through the script's hooks, with the real UNet of ldm in the fake host: what comes in must go out again."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dp_adapter.core.latent_gate import LatentGate
from dp_adapter.errors import HostError
from dp_adapter.weights import formats
from dp_adapter.weights.families import own_adapter
from tests import tiny
from tests.hosts import ldm_unet
from tests.hosts.protocol import same_state, state_of
from tests.webui import fake_webui, hooked_script
from tests.webui.hooked_script import nothing

pytest.importorskip("starlette", reason="the hosts bring it")


@pytest.fixture
def host(adapter_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fake host with our script registered; ``job(args, **settings)`` makes a job."""
    with hooked_script.registered(adapter_path, tmp_path, monkeypatch) as ours:

        def job(request: Any = "", **settings: Any) -> fake_webui.Processing:
            return fake_webui.Processing(
                ours.model, ours.script.DPAdapterScript(), [request, False], ours.unet, **settings
            )

        ours.job = job
        yield ours


def largest(one: list[Tensor], other: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def test_off_is_bit_equal_and_touches_nothing(host: Any, person: dict[str, Any]) -> None:
    before = state_of(host.unet.module)
    plain = host.job().run()
    for request in ("", {**person, "enabled": False}, {**person, "weight": 0}):
        p = host.job(request)
        assert all(map(torch.equal, p.run(), plain)) and not p.reported
    assert same_state(before, state_of(host.unet.module))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([None, False], "null is not a request"),
        ([True, False], "true is not a request"),
        ([[1, 2], False], "a list is not a request"),
        (["", 5], "5 is one too many"),
        ([{}, {}], "an object is one too many"),
        ([{}, False], "there is no photo"),
    ],
)
def test_args_of_a_wrong_kind_end_the_job_in_words(host: Any, args: list[Any], words: str) -> None:
    p = host.job()
    p.args = args
    with pytest.raises(Exception, match=words) as stopped:
        p.run()
    assert vars(stopped.value)["status_code"] == 422


@pytest.mark.parametrize("args", [[], ["", False], ["", None], [None, None]])
def test_args_that_ask_for_nothing_are_a_plain_picture(host: Any, args: list[Any]) -> None:
    p = host.job()
    p.args = args
    assert all(map(torch.equal, p.run(), host.job().run())) and not p.comments and not p.extra_generation_params


def test_an_open_panel_without_a_photo_is_a_plain_picture_that_says_so(host: Any) -> None:
    plain = host.job().run()
    p = host.job()
    p.args = ["", True]
    assert all(map(torch.equal, p.run(), plain)) and not p.reported
    assert p.comments == [
        "DP-Adapter: there was no photo, so the picture was made without the adapter. Drop one to use it."
    ]
    assert p.extra_generation_params == {"DP-Adapter result identity": "none acted: there was no photo"}


def test_the_panels_args_over_the_api_need_a_photo(host: Any) -> None:
    p = host.job(is_api=True)
    p.args = ["", True]
    with pytest.raises(Exception, match="there is no photo") as stopped:
        p.run()
    assert vars(stopped.value)["status_code"] == 422


def test_on_acts_and_leaves_nothing(host: Any, person: dict[str, Any]) -> None:
    before, plain = state_of(host.unet.module), host.job().run()
    p = host.job(person, n_iter=2)
    made = p.run()
    assert not p.reported and largest(made[:1], plain) > 1e-2
    assert same_state(before, state_of(host.unet.module))
    assert "dp_adapter_run" not in vars(p) and "sample" not in vars(p) and "init" not in vars(p)
    assert p.extra_generation_params["DP-Adapter weight"] == "1"
    assert all(len(text) < 200 for text in p.extra_generation_params.values())  # no picture in the infotext
    assert p.processed.images == []
    assert all(map(torch.equal, host.job(json.dumps(person), n_iter=2).run(), made))


def test_the_same_object_used_again(host: Any, person: dict[str, Any]) -> None:
    """Loopback and the like run one processing object several times."""
    p = host.job(person)
    first, second = p.run(), p.run()
    assert all(map(torch.equal, first, second))


def test_a_batch_is_its_pictures(host: Any, person: dict[str, Any]) -> None:
    p = host.job(person, batch_size=2)
    assert p.run()[0].shape[0] == 2 and not p.reported


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"references": []}, "there is no photo"),
        ({"wieght": 1}, "Did you mean 'weight'?"),
        ({"model": "nobody"}, "There is no model"),
        ({"references": [{"image": "/etc/passwd"}]}, "base64"),
    ],
)
def test_an_error_ends_the_job_in_words(host: Any, person: dict[str, Any], change: dict[str, Any], words: str) -> None:
    plain = host.job().run()
    calls: list[int] = []
    host.unet.before_call = calls.append
    p = host.job({**person, **change})
    with pytest.raises(Exception, match=words) as stopped:
        p.run()
    assert vars(stopped.value)["status_code"] == 422 and words in vars(stopped.value)["detail"]
    assert not calls, "something was sampled"
    assert words in host.warned[0]
    assert "init" not in vars(p) and "sample" not in vars(p)
    assert all(map(torch.equal, host.job().run(), plain))


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (
            "facechain-fact",
            "TransFace-S face encoder is needed and was not found. Download it (",
        ),
        ("ip-adapter-full-face", "No CLIP vision encoder with hidden width 40 was found; seen: none. Get it with "),
        ("faceid", "insightface"),
    ],
)
def test_a_missing_encoder_ends_the_job_in_words(
    host: Any, person: dict[str, Any], family: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(host.fake["modules.paths"].models_path) / "dp_adapter"
    tensors = tiny.fact_tensors() if family == "facechain-fact" else tiny.family_tensors(family)
    tiny.write(folder / f"{family}.safetensors", tensors, "safetensors")
    calls: list[int] = []
    host.unet.before_call = calls.append
    with pytest.raises(Exception, match=re.escape(words)) as stopped:
        host.job({**person, "model": family}).run()
    assert vars(stopped.value)["status_code"] == 422 and words in vars(stopped.value)["detail"]
    assert not calls and words in host.warned[0]
    # What a WebUI's user can do: with its own Python, in which we are not installed. No place on the server.
    detail = vars(stopped.value)["detail"]
    assert "dp-adapter " not in detail and "'pip" not in detail and " pip install" not in detail.replace("-m pip", "")
    root = Path(host.fake["modules.paths"].script_path)
    assert str(root) not in detail and sys.executable not in detail and str(Path.home()) not in detail
    # The console has one line, and there the command is whole.
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("*** DP-Adapter: ") and f"'{sys.executable} " in line


def test_an_unexpected_error_is_no_silent_picture(
    host: Any, person: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dp_adapter.webui.host import shared_session

    reports: list[str] = []

    def report(text: str, *, exc_info: bool) -> None:
        assert exc_info
        reports.append(text)

    def fail(_model: object) -> None:
        raise ZeroDivisionError("by zero")

    errors = SimpleNamespace(report=report)
    monkeypatch.setitem(sys.modules, "modules.errors", errors)
    monkeypatch.setattr(host.fake["modules"], "errors", errors, raising=False)
    monkeypatch.setattr(shared_session, "base_of", fail)
    with pytest.raises(Exception, match="unexpected ZeroDivisionError"):
        host.job(person).run()
    assert reports


def test_an_exception_while_sampling_takes_the_adapter_out(host: Any, person: dict[str, Any]) -> None:
    before, plain = state_of(host.unet.module), host.job().run()

    def fail(step: int) -> None:
        if step == 1:
            raise RuntimeError("out of memory")

    host.unet.before_call = fail
    p = host.job(person)
    with pytest.raises(RuntimeError, match="out of memory"):
        p.run()
    assert same_state(before, state_of(host.unet.module)) and "sample" not in vars(p)
    host.unet.before_call = nothing
    assert all(map(torch.equal, host.job().run(), plain))


@contextmanager
def control_in(_p: Any, unet: Any, _call: Any) -> Generator[None]:
    """A ControlNet as A1111's extension puts it in."""
    unet.forward = unet.forward
    try:
        yield
    finally:
        del unet.forward


def failing(make: Callable[..., Any], when: str) -> Callable[..., Any]:
    """A part of a pass that fails before it comes in, or before it goes out."""

    @contextmanager
    def part(*args: Any, **named: Any) -> Generator[Any]:
        if when == "in":
            raise HostError("it broke")
        with make(*args, **named) as inside:
            yield inside
            raise HostError("it broke")

    return part


PARTS = ("_add_identity_net", "attach", "follow_previews", "show_regions")


@pytest.mark.parametrize(("part", "when"), [*product(PARTS, ("in", "out")), ("BypassCheck.give_up", "out")])
def test_a_part_that_fails_leaves_nothing_in_the_host(
    host: Any, person: dict[str, Any], monkeypatch: pytest.MonkeyPatch, part: str, when: str
) -> None:
    """The ControlNet, the adapter, the previews and the overlay go out, whichever of them fails."""
    from dp_adapter.hosts.attach.bypass_check import BypassCheck
    from dp_adapter.webui.job import sampling_pass
    from dp_adapter.webui.job.job import Job

    shown: list[Any] = []
    state = host.fake["modules.shared"].state = SimpleNamespace(assign_current_image=shown.append)
    assign, before = state.assign_current_image, state_of(host.unet.module)
    request = {**person, "regions": [], "report": {"overlay": True}}
    expected = host.job(request).run()
    entered: list[int] = []
    prepare = Job._prepare

    def with_net(self: Job, *args: Any) -> Any:
        return replace(prepare(self, *args), net=host.unet.module)

    def fail(acting: Any) -> None:
        raise HostError("it broke")

    with monkeypatch.context() as broken:
        broken.setattr(Job, "_prepare", with_net)
        broken.setattr(sampling_pass, "_add_identity_net", control_in)
        host.unet.before_call = entered.append
        if part == "BypassCheck.give_up":
            broken.setattr(BypassCheck, "give_up", fail)
        else:
            broken.setattr(sampling_pass, part, failing(getattr(sampling_pass, part), when))
        p = host.job(request)
        with pytest.raises(Exception, match="it broke"):
            p.run()
    host.unet.before_call = nothing
    assert bool(entered) == (when == "out")
    assert same_state(before, state_of(host.unet.module)) and state.assign_current_image is assign
    assert not p.sampler.model_wrap_cfg._forward_hooks and "sample" not in vars(p)
    assert all(map(torch.equal, host.job(request).run(), expected))


def test_hires_pass(host: Any, person: dict[str, Any]) -> None:
    same, off, none, own_weight = (
        host.job({**person, "hires": hires}, **HIRES).run()
        for hires in (
            {},
            {"use": "off"},
            {"use": "own", "weight": 0},
            {"use": "own", "weight": 1.0},
        )
    )
    assert all(map(torch.equal, off, none)) and all(map(torch.equal, same, own_weight))
    assert largest(same, off) > 1e-2
    # The second batch of a hires job starts with the first pass's settings again.
    twice = host.job({**person, "hires": {"use": "off"}}, n_iter=2, **HIRES).run()
    assert torch.equal(twice[0], off[0])
    assert largest(twice, host.job(n_iter=2, **HIRES).run()) > 1e-2


def test_the_refiner_is_followed(host: Any, person: dict[str, Any]) -> None:
    """Other weights in the same UNet object: the folds are made anew."""
    module = host.unet.module
    weight = module.get_parameter("input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight")
    original = weight.detach().clone()

    def switch(step: int) -> None:
        # The host switches before it calls on_cfg_denoiser of the step; here after step 0's call.
        if step == 0:
            host.model.sd_checkpoint_info = object()

    results = []
    for form in ("folded", "plain"):
        host.unet.before_call = switch
        with torch.no_grad():
            weight.copy_(original)
        results.append(host.job({**person, "performance": {"form": form}}).run())
    assert largest(*results) < 1e-4


def test_sampling_that_does_not_tell_scripts_has_the_identity_too(host: Any, person: dict[str, Any]) -> None:
    """DemoFusion's ``p.sample`` calls samplers by itself (scripts/tileglobal.py:276-330 at 22798f6)."""
    expected = host.job(person).run()
    p = host.job(person)

    def sample(x: Any, cond: Any, uncond: Any) -> Any:
        p.sampler = p._new_sampler(cond)
        return p.sampler.sample(x, cond, uncond)

    p.sample = sample
    assert all(map(torch.equal, p.run(), expected))
    assert not p.comments


def test_masks_come_back_on_request_only(host: Any, person: dict[str, Any]) -> None:
    p = host.job({**person, "report": {"masks": True}})
    p.run()
    (mask,) = p.processed.images
    assert mask.size == (128, 128) and mask.getpixel((10, 64)) == 0 and mask.getpixel((120, 64)) == 255
    assert len(p.processed.infotexts) == 1


def test_a_replacement_unet_is_refused(host: Any, person: dict[str, Any]) -> None:
    host.fake["modules.sd_unet"].current_unet = SimpleNamespace(option=SimpleNamespace(label="TensorRT"))
    with pytest.raises(Exception, match="'TensorRT' runs in place"):
        host.job(person).run()
    assert host.job().run()


def past_its_layers(latents: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return 0.5 * latents


def test_a_model_that_is_called_past_its_layers_ends_the_job_in_words(
    host: Any, person: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.unet.module, "forward", past_its_layers)
    before = state_of(host.unet.module)
    plain = host.job().run()
    p = host.job(person)
    with pytest.raises(Exception, match=r"called 2 times.*never ran") as stopped:
        p.run()
    assert getattr(stopped.value, "status_code", None) == 422
    assert same_state(before, state_of(host.unet.module)) and "sample" not in vars(p) and not p.reported
    for idle in ({"weight": 0}, {"span": {"start": 0.95}}):
        p = host.job({**person, **idle})
        assert all(map(torch.equal, p.run(), plain)) and not p.reported


@pytest.mark.parametrize("missing", [16, 32], ids=["first pass", "hires pass"])
def test_an_identity_that_is_missing_in_one_pass_only_ends_the_job_too(
    host: Any, person: dict[str, Any], monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    forward = host.unet.module.forward

    def one_pass_only(latents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return past_its_layers(latents) if latents.shape[-1] == missing else forward(latents, *args, **kwargs)

    monkeypatch.setattr(host.unet.module, "forward", one_pass_only)
    p = host.job(person, **HIRES)
    with pytest.raises(Exception, match="never ran"):
        p.run()
    assert not p.reported


def test_another_model_that_is_sampled_ends_the_job_in_words(host: Any, person: dict[str, Any]) -> None:
    attached_to, host.unet.module = host.unet.module, ldm_unet.of(tiny.unet("sd15"), groups=8)
    before = state_of(attached_to)
    with pytest.raises(Exception, match="another model"):
        host.job(person).run()
    assert same_state(before, state_of(attached_to))


def test_an_error_is_not_talked_over(host: Any, person: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: int) -> None:
        if step == 1:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(host.unet.module, "forward", past_its_layers)
    host.unet.before_call = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        host.job(person).run()


@pytest.mark.parametrize(
    ("webui", "fast", "hires", "told"),
    [
        ("forge", False, False, True),
        ("forge", False, True, True),
        ("neo", False, False, True),
        ("neo", True, False, False),
        ("neo", False, True, False),
        ("a1111", False, False, False),
    ],
)
def test_only_a_refiner_that_is_another_model_is_told(
    host: Any, monkeypatch: pytest.MonkeyPatch, webui: str, fast: bool, hires: bool, told: bool
) -> None:
    from dp_adapter.webui.host import compat

    monkeypatch.setattr(compat, "webui", lambda: webui)
    monkeypatch.setattr(host.fake["modules.shared"].opts, "refiner_fast_sd", fast, raising=False)
    assert compat.refiner_leaves_model(host.job(enable_hr=hires)) is told


IDLE: list[tuple[dict[str, Any], str]] = [
    ({"weight": 0}, "its weight is 0"),
    ({"curve": "0@0, 0@1"}, "its weight curve is 0 everywhere"),
    ({"regions": [{"kind": "full", "weight": 0}]}, "its weight is 0"),
    ({"span": {"start": 0.99}}, "no step fell into its span"),
    ({"regions": [], "tracking": {"fallback": "none"}}, "its region stayed empty"),
    ({"hires": {"use": "own", "weight": 0}, "weight": 0}, "its weight is 0"),
]


@pytest.mark.parametrize(("change", "why"), IDLE)
def test_parameters_claim_nothing_where_nothing_acted(
    host: Any, person: dict[str, Any], change: dict[str, Any], why: str
) -> None:
    p = host.job({**person, **change}, is_api=True, **(HIRES if "hires" in change else {}))
    plain = host.job(**(HIRES if "hires" in change else {}))
    assert all(map(torch.equal, p.run(), plain.run())) and not p.reported and p.comments
    written = dict(p.extra_generation_params)
    assert why.lower() in written.pop("DP-Adapter result notes").lower() or "acted nowhere" in p.comments[0]
    assert written == {"DP-Adapter result identity": f"none acted: {why}"}


@pytest.mark.parametrize("persons", [1, 2])
def test_photos_without_a_face_are_told_in_the_parameters(host: Any, person: dict[str, Any], persons: int) -> None:
    grey = io.BytesIO()
    Image.new("RGB", (256, 256), (90, 120, 90)).save(grey, "PNG")
    faceless = {"image": base64.b64encode(grey.getvalue()).decode(), "identity": persons - 1}
    references = [*person["references"][: persons - 1], faceless]
    p = host.job({**person, "references": references, "no_face": "continue"}, is_api=True)
    made = p.run()
    written = p.extra_generation_params
    assert not p.reported and "no face was found" in written["DP-Adapter result photos left out"].lower()
    assert "left out" in written["DP-Adapter result notes"] and "left out" in p.comments[0]
    if persons == 1:
        assert all(map(torch.equal, made, host.job().run()))
        assert written["DP-Adapter result identity"] == "none acted: no photo is left to use"
        assert not any(key == "DP-Adapter" or key == "DP-Adapter weight" for key in written)
    else:
        assert largest(made, host.job().run()) > 1e-3 and written["DP-Adapter weight"] == "1"
        assert "DP-Adapter result identity" not in written


def test_an_identity_that_acts_in_the_hires_pass_alone_is_in_the_parameters(host: Any, person: dict[str, Any]) -> None:
    p = host.job({**person, "weight": 0, "hires": {"use": "own", "weight": 1.0}}, **HIRES)
    p.run()
    assert p.extra_generation_params["DP-Adapter weight"] == "0"
    assert "DP-Adapter result identity" not in p.extra_generation_params


def test_the_model_that_was_used_is_written(host: Any, person: dict[str, Any], adapter_path: Path) -> None:
    """Pasted where a second one is installed, the same picture comes out."""
    from dp_adapter.webui.parameters import infotext

    p = host.job(person)
    made = p.run()
    assert p.extra_generation_params["DP-Adapter model"] == adapter_path.name
    folder = Path(host.fake["modules.paths"].models_path) / "dp_adapter"
    (folder / "another.safetensors").hardlink_to(adapter_path)
    with pytest.raises(Exception, match="No model was chosen"):
        host.job(person).run()
    pasted = infotext.read_parameters(p.extra_generation_params)
    assert pasted is not None and pasted.settings is not None
    assert all(map(torch.equal, host.job(pasted.settings.to_dict()).run(), made))


def test_a_cell_that_is_off_claims_nothing_of_the_one_before(host: Any, person: dict[str, Any]) -> None:
    shared: dict[str, Any] = {}
    host.job(person, extra_generation_params=shared, dp_adapter_overrides={"blend": "orthogonal"}).run()
    assert shared["DP-Adapter blend mode"] == "orthogonal"
    host.job(person, extra_generation_params=shared, dp_adapter_overrides={"weight": 0.5}).run()
    assert "DP-Adapter blend mode" not in shared and shared["DP-Adapter weight"] == "0.5"
    host.job(person, extra_generation_params=shared, dp_adapter_overrides={"enabled": False}).run()
    assert not shared


def test_a_cell_of_a_grid_does_not_leak(host: Any, person: dict[str, Any]) -> None:
    plain, full = host.job().run(), host.job(person).run()
    cell = host.job(person, dp_adapter_overrides={"weight": 0})
    assert all(map(torch.equal, cell.run(), plain))
    assert all(map(torch.equal, host.job(person).run(), full))


@pytest.fixture
def sharp(portrait: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Previews show the portrait's head in full; counts how often they are made."""
    asked: list[int] = []
    with Image.open(portrait) as opened:
        head = np.asarray(opened.convert("RGB").crop((96, 0, 352, 256)))

    def decoder(_choice: str, _base: str) -> Callable[[Tensor], list[Any]]:
        def decode(latents: Tensor) -> list[Any]:
            asked.append(len(latents))
            return [head] * len(latents)

        return decode

    monkeypatch.setattr("dp_adapter.webui.job.job.choose_decoder", decoder)
    return asked


def test_the_region_follows_the_face_of_the_preview(host: Any, person: dict[str, Any], sharp: list[int]) -> None:
    plain = host.job(steps=4, batch_size=2).run()
    seen: list[bool] = []
    request = {**person, "regions": [], "report": {"masks": True}}
    p = host.job(request, steps=4, batch_size=2)
    denoised = p.predicted

    def predicted(made: Tensor, step: int) -> Tensor:
        seen.append(bool(p.dp_adapter_run._current.injection.identities[0].region.any()))
        return denoised(made, step)

    p.predicted = predicted
    made = p.run()
    assert not p.reported and largest(made, plain) > 1e-3
    # at progress 0.2, 0.5 and 0.8, a moment each
    assert sharp == [2, 2, 2] and seen == [False, True, True, True]
    masks = p.processed.images
    assert len(masks) == 2 and masks[0].size == (128, 128) and 0.05 < np.asarray(masks[0]).mean() / 255 < 0.5
    assert not p.comments and not host.unet.module._forward_hooks


def test_a_gate_moves_the_region_without_a_preview(
    adapter_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, person: dict[str, Any]
) -> None:
    adapter = formats.read(adapter_path).adapter
    adapter.gate = LatentGate(4, 8)
    with torch.no_grad():
        for parameter in adapter.gate.parameters():
            parameter.zero_()
    adapter.gate.get_parameter("last.bias").data.fill_(9.0)  # a face everywhere
    (tmp_path / "gated").mkdir()
    gated = tmp_path / "gated" / "tiny.safetensors"
    own_adapter.save(gated, adapter, "sd15", "sface", {}, guidance=1.0)

    def decoder(_choice: str, _base: str) -> Callable[[Tensor], list[Any]]:
        def decode(_latents: Tensor) -> list[Any]:
            raise AssertionError("nothing has to be decoded")

        return decode

    monkeypatch.setattr("dp_adapter.webui.job.job.choose_decoder", decoder)
    with hooked_script.registered(gated, tmp_path, monkeypatch) as ours:
        seen: list[float] = []

        def run(request: Any) -> list[Tensor]:
            args = [request, False]
            script = ours.script.DPAdapterScript()
            p: Any = fake_webui.Processing(ours.model, script, args, ours.unet, steps=4, batch_size=2)
            denoised = p.predicted

            def predicted(made: Tensor, step: int) -> Tensor:
                if request:
                    identity = p.dp_adapter_run._current.injection.identities[0]
                    seen.append(float(identity.region.mean()))
                return denoised(made, step)

            p.predicted = predicted
            made = p.run()
            assert not p.reported and not p.comments and not ours.unet.module._forward_hooks
            return made

        plain = run("")
        assert largest(run({**person, "regions": []}), plain) > 1e-3
        assert seen == [0.0, 1.0, 1.0, 1.0], "from the second call on"


def test_a_face_that_never_comes_is_told_and_decides_nothing_early(host: Any, person: dict[str, Any]) -> None:
    plain = host.job(steps=4).run()
    nowhere = host.job({**person, "regions": [], "tracking": {"fallback": "none"}}, steps=4)
    assert all(map(torch.equal, nowhere.run(), plain)) and not nowhere.reported
    assert nowhere.comments == [
        "DP-Adapter: The face of person 1 was not found while the picture formed; the identity acted nowhere."
    ]
    late = host.job({**person, "regions": []}, steps=4)
    assert largest(late.run(), plain) > 1e-3 and "from late on" in late.comments[0]


def test_the_hires_pass_goes_on_where_the_first_one_ended(host: Any, person: dict[str, Any], sharp: list[int]) -> None:
    p = host.job({**person, "regions": []}, steps=4, enable_hr=True, hr_upscale_to_x=256, hr_upscale_to_y=256)
    first: list[bool] = []
    denoised = p.predicted

    def predicted(made: Tensor, step: int) -> Tensor:
        if p.is_hr_pass and step == 0:
            first.append(bool(p.dp_adapter_run._current.injection.identities[0].region.any()))
        return denoised(made, step)

    p.predicted = predicted
    p.run()
    assert not p.reported and first == [True] and len(sharp) == 6


def test_the_live_preview_shows_the_regions(host: Any, person: dict[str, Any]) -> None:
    shown: list[Any] = []
    state = SimpleNamespace(assign_current_image=shown.append)

    def image_grid(images: list[Image.Image]) -> Image.Image:
        return Image.fromarray(np.hstack([np.asarray(one) for one in images]))

    images: Any = ModuleType("modules.images")
    images.image_grid = image_grid
    host.fake["modules.shared"].state = state
    host.fake["modules.shared"].opts.show_progress_grid = True
    sys.modules["modules.images"] = host.fake["modules"].images = images
    before = state.assign_current_image
    p = host.job({**person, "report": {"overlay": True}}, batch_size=2)
    denoised = p.predicted

    def predicted(made: Tensor, step: int) -> Tensor:
        state.assign_current_image(Image.new("RGB", (64, 32), (90, 90, 90)))
        return denoised(made, step)

    p.predicted = predicted
    p.run()
    assert not p.reported and len(shown) == 2
    # two pictures beside each other, each with its right half inside the box
    tint = np.asarray(shown[0]).astype(int) - 90
    inside, outside = tint[:, 18:30], tint[:, 2:14]
    assert np.abs(inside).max() > 40 and np.abs(outside).max() <= 1 and np.abs(tint[:, 50:62]).max() > 40
    assert state.assign_current_image == before


def test_a_mode_puts_its_words_into_the_prompts(host: Any, person: dict[str, Any]) -> None:
    prompts = {"all_prompts": ["a man"], "all_negative_prompts": [""]}
    p = host.job({**person, "mode": "expression", "expression": "sad"}, **prompts)
    p.run()
    assert not p.reported and p.sampled[0]["prompts"][0].startswith("a man, sad expression, ")
    assert p.all_prompts == ["a man"] and p.all_negative_prompts == [""], "of which the host writes the parameters"
    assert p.extra_generation_params["DP-Adapter result words"].startswith("sad expression")
    assert p.extra_generation_params["DP-Adapter mode"] == "expression"


def test_a_refusal_speaks_to_who_asked(host: Any, faceless: Path) -> None:
    """The API's of its fields, the panel's of the numbers that it shows."""
    photos = [{"image": base64.b64encode(faceless.read_bytes()).decode()}]
    with pytest.raises(Exception, match=r"^references\[0\]: No face was found"):
        host.job({"references": photos}).run()
    from dp_adapter.settings import Settings
    from dp_adapter.webui.panel.widget_values import args_of

    p = host.job()
    p.args = ["", *args_of(Settings.from_dict({"references": photos}))[1:]]
    with pytest.raises(Exception, match=r"^Photo 1: No face was found"):
        p.run()


@pytest.mark.parametrize("off", [{"enabled": False}, {"weight": 0}, {"curve": "0@0, 0@1"}])
def test_off_is_off_for_the_prompts_too(host: Any, person: dict[str, Any], off: dict[str, Any]) -> None:
    prompts = {"all_prompts": ["a man"], "all_negative_prompts": ["ugly"]}
    p = host.job({**person, "mode": "full_body", **off}, **prompts)
    p.run()
    assert not p.reported and p.sampled == [{"prompts": ["a man"], "negative_prompts": ["ugly"]}]
    assert not any(key.endswith("words") for key in p.extra_generation_params)


HIRES = {"enable_hr": True, "hr_upscale_to_x": 256, "hr_upscale_to_y": 256, "hr_checkpoint_name": None}


@pytest.mark.parametrize(
    ("weight", "hires", "acts"),
    [(1, "same", (True, True)), (1, "off", (True, False)), (0, "same", (False, False)), (0, "own", (False, True))],
)
def test_words_are_in_the_passes_that_act(
    host: Any, person: dict[str, Any], weight: float, hires: str, acts: tuple[bool, bool]
) -> None:
    prompts = {f"all_{one}prompts": ["a man"] for one in ("", "negative_", "hr_", "hr_negative_")}
    request = {**person, "mode": "full_body", "weight": weight, "hires": {"use": hires}, "face_pass": {"use": "off"}}
    p = host.job(request, **prompts, **HIRES)
    p.run()
    (sampled,) = p.sampled
    assert not p.reported and tuple("full body" in sampled[one][0] for one in ("prompts", "hr_prompts")) == acts
    assert {name: getattr(p, name) for name in prompts} == prompts
