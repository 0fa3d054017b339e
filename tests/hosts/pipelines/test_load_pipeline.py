"""Loading folders and single files, and the three tasks, on the demo's tiny base and a tiny SDXL."""

import importlib
import json
import shutil
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dp_adapter.errors import HostError, SettingsError
from dp_adapter.hosts.pipelines.diffusers_job import Pixels
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob, Prompts, load, run
from dp_adapter.hosts.pipelines.samplers import SAMPLERS
from dp_adapter.hosts.prompts import encode_prompts
from dp_adapter.hosts.prompts.clip_tokenizer import RESOURCES, clip_tokenizer
from tests.hosts import ldm_names
from tools.tiny_base import random_weights, tiny_pipeline, tiny_unet, tiny_vae

diffusers: Any = importlib.import_module("diffusers")  # its lazy names have no types
QUICK = DiffusersJob("a photo of a cat", width=64, height=64, steps=3, guidance=3.0, sampler="ddim", seed=5)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def pipeline(tiny_folder: Path) -> Any:
    return load(tiny_folder, "cpu")


@pytest.fixture(scope="module")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text: dict[str, Any] = tiny_pipeline.TEXT_CONFIG | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 32,
    }
    text_2: dict[str, Any] = tiny_pipeline.TEXT_CONFIG | {"hidden_size": 48, "projection_dim": 48, "hidden_act": "gelu"}
    unet = tiny_unet.CONFIG | {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (16, 32, 32),
        "attention_head_dim": (2, 2, 2),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "cross_attention_dim": 32 + 48,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 48 + 6 * 8,
    }
    parts = {
        "unet": diffusers.UNet2DConditionModel(**unet),
        "vae": diffusers.AutoencoderKL(**tiny_vae.CONFIG),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**text_2)),
    }
    for name, part in parts.items():
        random_weights.fill(part, 1, name)
    tiny_vae.construct(parts["vae"])
    made = diffusers.StableDiffusionXLPipeline(
        **parts,
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad="!"),
        add_watermarker=False,
    )
    path = tmp_path_factory.mktemp("sdxl")
    made.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sdxl(sdxl_folder: Path) -> Any:
    return load(sdxl_folder, "cpu")


def test_tokenizer_knows_clips_ids() -> None:
    tokenizer = clip_tokenizer()
    known = {
        "a photo of a cat": [320, 1125, 539, 320, 2368],
        "A  Photograph of\nan ASTRONAUT riding a horse!": [320, 8853, 539, 550, 18376, 6765, 320, 4558, 256],
        "hello, world": [3306, 267, 1002],
        "it's 2024": [585, 568, 273, 271, 273, 275],
        "café": [15304],
        "": [],
    }
    for text, ids in known.items():
        assert tokenizer(text).input_ids == [49406, *ids, 49407]
    assert len(tokenizer) == 49408
    assert clip_tokenizer(pad="!").pad_token_id == 0


@pytest.mark.parametrize(
    ("base", "unet", "text", "text_2"),
    [("sd15", 859_520_964, 123_060_480, None), ("sdxl", 2_567_463_684, 123_060_480, 694_659_840)],
)
def test_shipped_configurations_have_the_public_models_sizes(
    base: str, unet: int, text: int, text_2: int | None
) -> None:
    def parameters(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    folder = RESOURCES / base
    with torch.device("meta"):
        unet_class, vae_class = diffusers.UNet2DConditionModel, diffusers.AutoencoderKL
        assert parameters(unet_class.from_config(unet_class.load_config(folder, subfolder="unet"))) == unet
        assert parameters(vae_class.from_config(vae_class.load_config(folder, subfolder="vae"))) == 83_653_863
        assert parameters(CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))) == text
        if text_2:
            config = CLIPTextConfig.from_pretrained(folder / "text_encoder_2")
            assert parameters(CLIPTextModelWithProjection(config)) == text_2


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_single_file_sd15_is_the_folder(pipeline: Any, tiny_folder: Path, tmp_path: Path, suffix: str) -> None:
    path = ldm_names.write(pipeline, tmp_path / f"tiny{suffix}")
    loaded = load(path, "cpu", config=tiny_folder)
    for part in ("unet", "vae", "text_encoder"):
        assert_same_weights(getattr(pipeline, part), getattr(loaded, part))
    assert np.array_equal(run(loaded, QUICK)[0], run(pipeline, QUICK)[0])


def test_single_file_sdxl_is_the_folder(sdxl: Any, sdxl_folder: Path, tmp_path: Path) -> None:
    path = ldm_names.write(sdxl, tmp_path / "tiny.safetensors")
    loaded = load(path, "cpu", config=sdxl_folder)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        assert_same_weights(getattr(sdxl, part), getattr(loaded, part))
    assert loaded.tokenizer_2.pad_token_id == 0
    one, other = (run(pipe, QUICK)[0].astype(int) for pipe in (loaded, sdxl))
    assert np.abs(one - other).max() <= 1  # a text projection that lies otherwise in memory rounds otherwise


@pytest.mark.parametrize("which", ["pipeline", "sdxl"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_text_encoder_under_the_names_of_2022(
    request: pytest.FixtureRequest, tiny_folder: Path, sdxl_folder: Path, tmp_path: Path, which: str, suffix: str
) -> None:
    base, folder = request.getfixturevalue(which), tiny_folder if which == "pipeline" else sdxl_folder
    path = ldm_names.write(base, tmp_path / "new.safetensors")
    state = {key.replace(".text_model.", "."): value for key, value in load_file(str(path)).items()}
    assert not any("text_model" in key for key in state)
    state["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    old = tmp_path / f"old{suffix}"
    torch.save({"state_dict": state}, old) if suffix == ".ckpt" else save_file(state, str(old))
    loaded = load(old, "cpu", config=folder)
    assert_same_weights(base.text_encoder, loaded.text_encoder)
    one, other = (run(pipe, QUICK)[0] for pipe in (load(path, "cpu", config=folder), loaded))
    assert np.array_equal(one, other)


LACKING = {
    "layers.1.layer_norm1.weight": "text_encoder is incomplete, '.*layers.1.layer_norm1.weight' missing",
    "position_embedding.weight": "text_encoder is incomplete, '.*position_embedding.weight' missing",
    "input_blocks.1.1.norm.weight": "weights are missing|unet is incomplete",
    "decoder.conv_in.weight": "weights are missing|vae is incomplete",
}


@pytest.mark.parametrize("part", LACKING)
def test_what_a_checkpoint_lacks_is_told(pipeline: Any, tiny_folder: Path, tmp_path: Path, part: str) -> None:
    path = ldm_names.write(pipeline, tmp_path / "x.safetensors")
    state = {key: value for key, value in load_file(str(path)).items() if not key.endswith(part)}
    save_file(state, str(path))
    with pytest.raises(HostError, match=LACKING[part]):
        load(path, "cpu", config=tiny_folder)


def test_the_moving_average_beside_the_weights_is_left_alone(pipeline: Any, tiny_folder: Path, tmp_path: Path) -> None:
    path = ldm_names.write(pipeline, tmp_path / "x.safetensors")
    state = load_file(str(path))
    start = "model.diffusion_model."
    average = {
        "model_ema.diffusion_model" + key.removeprefix(start).replace(".", ""): torch.zeros_like(value)
        for key, value in state.items()
        if key.startswith(start)
    }
    save_file(state | average, str(path))
    assert_same_weights(load(path, "cpu", config=tiny_folder).unet, pipeline.unet)
    save_file(average, str(path))
    with pytest.raises(HostError, match="moving average of a UNet alone"):
        load(path, "cpu", config=tiny_folder)


def test_single_file_says_that_it_predicts_v(sdxl: Any, sdxl_folder: Path, tmp_path: Path) -> None:
    path = ldm_names.write(sdxl, tmp_path / "v.safetensors")
    save_file(load_file(str(path)) | {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, str(path))
    config = load(path, "cpu", config=sdxl_folder).scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)


def test_inpainting_single_file(pipeline: Any, tiny_folder: Path, tmp_path: Path) -> None:
    path = ldm_names.write(pipeline, tmp_path / "inpaint.safetensors")
    state = load_file(str(path))
    key = "model.diffusion_model.input_blocks.0.0.weight"
    save_file(state | {key: torch.cat([state[key], torch.zeros(32, 5, 3, 3)], dim=1)}, str(path))
    loaded = load(path, "cpu", config=tiny_folder)
    assert loaded.unet.config.in_channels == 9
    with pytest.raises(HostError, match="made for inpainting"):
        run(loaded, QUICK)
    assert run(loaded, replace(QUICK, init=photo(), mask=left_half()))[0].shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Diffusion 3"),
        ("cond_stage_model.model.positional_embedding", "Diffusion 2"),
        ("conditioner.embedders.0.model.positional_embedding", "refiner"),
        ("lora_unet_down_blocks_0.lora_up.weight", "LoRA"),
        ("something", "no checkpoint"),
        ("model.diffusion_model.input_blocks.0.0.weight", "no CLIP text encoder"),
    ],
)
def test_other_models_are_named(tmp_path: Path, key: str, words: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(4, 4, 3, 3)}, str(path))
    with pytest.raises(HostError, match=words):
        load(path, "cpu")


def test_a_model_of_other_widths_is_refused(pipeline: Any, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be loaded"):
        load(ldm_names.write(pipeline, tmp_path / "narrow.safetensors"), "cpu")


class Code:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code of the file ran",))


def test_files_that_are_no_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickled, cut = tmp_path / "code.ckpt", tmp_path / "cut.safetensors"
    torch.save({"state_dict": {}, "callback": Code()}, pickled)
    cut.write_bytes(b"\xff" * 100)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "sd3").mkdir()
    (tmp_path / "sd3" / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    for name, words in (
        ("code.ckpt", "contains code, not only weights"),
        ("cut.safetensors", "truncated or damaged"),
        ("notes.txt", "No model is this file"),
        ("missing.safetensors", "There is no model"),
        ("", "no model_index.json"),
        ("sd3", "made for StableDiffusion3Pipeline"),
    ):
        with pytest.raises(HostError, match=words):
            load(tmp_path / name, "cpu")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("index", "unet", "words"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, {"use_linear_projection": True}, "Stable Diffusion 2"),
        ({"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None]}, {}, "refiner"),
    ],
)
def test_folders_of_other_models_are_named(
    tmp_path: Path, index: dict[str, Any], unet: dict[str, Any], words: str
) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "unet" / "config.json").write_text(json.dumps(unet))
    with pytest.raises(HostError, match=words):
        load(tmp_path, "cpu")


def test_a_folder_of_pickles_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "pickles")
    weights = tmp_path / "pickles" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(str(weights)), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(HostError, match="cannot be loaded"):
        load(tmp_path / "pickles", "cpu")


def test_a_folder_of_half_precision_only(pipeline: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert_same_weights(load(tmp_path, "cpu").unet, pipeline.unet)


def test_unknown_device_and_dtype(tiny_folder: Path) -> None:
    with pytest.raises(HostError, match="'toaster'"):
        load(tiny_folder, "toaster")
    with pytest.raises(HostError, match="'int3'"):
        load(tiny_folder, "cpu", "int3")


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs(pipeline: Any, name: str) -> None:
    before = pipeline.scheduler
    seen: list[Any] = []
    picture = run(pipeline, replace(QUICK, sampler=name, steps=4), lambda done, total: seen.append((done, total)))[0]
    assert picture.shape == (64, 64, 3) and picture.std() > 1
    assert seen[-1][0] == seen[-1][1] == len(seen) >= 4
    assert pipeline.scheduler is before


@pytest.mark.parametrize("which", ["pipeline", "sdxl"])
@pytest.mark.parametrize(("task", "sampler"), [("txt2img", "euler_a"), ("img2img", "ddim"), ("inpaint", "euler_a")])
def test_picture_of_a_batch_is_the_single_picture(
    request: pytest.FixtureRequest, which: str, task: str, sampler: str
) -> None:
    base = request.getfixturevalue(which)
    job = replace(QUICK, sampler=sampler, steps=4, **inputs(task))
    batch = run(base, replace(job, batch=3))
    assert np.array_equal(batch[1], run(base, replace(job, batch=3))[1])
    for i, picture in enumerate(batch):
        alone = run(base, replace(job, seed=job.seed + i))[0].astype(int)
        assert np.abs(picture - alone).max() <= 1, "kernels may sum in another order, no more"
    assert np.abs(batch[0].astype(int) - batch[1]).max() > 10


def test_img2img_starts_from_the_picture(pipeline: Any) -> None:
    job = replace(QUICK, init=photo(), steps=20)
    near, far = (run(pipeline, replace(job, strength=s))[0].astype(float) for s in (0.1, 1.0))
    assert np.abs(near - photo()).mean() < 15 < 30 < np.abs(far - photo()).mean()


def test_inpainting_keeps_what_is_not_masked(pipeline: Any) -> None:
    made = run(pipeline, replace(QUICK, init=photo(), mask=left_half(), strength=1.0))[0]
    assert np.array_equal(made[:, 32:], photo()[:, 32:])
    assert np.abs(made[:, :32].astype(int) - photo()[:, :32]).mean() > 5


def test_around_sees_the_pipeline_that_runs(pipeline: Any) -> None:
    seen: list[Any] = []

    @contextmanager
    def around(running: Any) -> Generator[None]:
        calls: list[bool] = []

        def note(*_: object) -> None:
            calls.append(running.do_classifier_free_guidance)

        hook = running.unet.register_forward_pre_hook(note)
        yield
        hook.remove()
        seen.append((type(running).__name__, running.unet is pipeline.unet, calls))

    for task, guidance in (("txt2img", 3.0), ("img2img", 1.0), ("inpaint", 3.0)):
        run(pipeline, replace(QUICK, guidance=guidance, strength=1.0, **inputs(task)), around=around)
    names = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"]
    assert seen == [(name, True, [guided] * 3) for name, guided in zip(names, (True, False, True), strict=True)]


@pytest.mark.parametrize("which", ["pipeline", "sdxl"])
def test_short_prompts_are_encoded_as_diffusers_does(request: pytest.FixtureRequest, which: str) -> None:
    base = request.getfixturevalue(which)
    ours = encode_prompts.encode(base, "a photo of a cat", "blurry, ugly", guided=True)
    theirs = base.encode_prompt(
        "a photo of a cat",
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt="blurry, ugly",
    )
    order = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    for name, tensor in zip(order, theirs, strict=False):
        torch.testing.assert_close(ours[name], tensor)


def test_long_prompts_are_joined_chunks(pipeline: Any) -> None:
    words = " ".join(["cat"] * 75)
    joined = encode_prompts.encode(pipeline, words + " dog", "", guided=True)
    assert joined["prompt_embeds"].shape == joined["negative_prompt_embeds"].shape == (1, 154, 64)
    for part, text in ((slice(77), words), (slice(77, 154), "dog")):
        alone = encode_prompts.encode(pipeline, text, "", guided=False)["prompt_embeds"]
        torch.testing.assert_close(joined["prompt_embeds"][:, part], alone)
    assert run(pipeline, replace(QUICK, prompt=words + " dog"))[0].std() > 1


def test_empty_negative_prompt_of_sdxl_is_zero(sdxl: Any) -> None:
    encoded = encode_prompts.encode(sdxl, "a cat", "", guided=True)
    assert not encoded["negative_prompt_embeds"].any() and not encoded["negative_pooled_prompt_embeds"].any()
    assert encode_prompts.encode(sdxl, "a cat", "dog", guided=True)["negative_prompt_embeds"].any()


@pytest.mark.parametrize(
    ("changes", "field", "nearest"),
    [
        ({"width": 515}, "width", 512),
        ({"height": 532}, "height", 536),
        ({"width": 8}, "width", 64),
        ({"steps": 0}, "steps", 1),
        ({"guidance": float("nan")}, "guidance", 0.0),
        ({"seed": -1}, "seed", 0),
        ({"batch": 100}, "batch", 64),
        ({"sampler": "DPM++ 2M Karras"}, "sampler", "dpmpp_2m_karras"),
        ({"sampler": "eular"}, "sampler", "euler"),
        ({"mask": np.zeros((64, 64), np.uint8)}, "mask", None),
        ({"init": np.zeros((32, 64, 3), np.uint8)}, "init", None),
        ({"init": np.zeros((64, 64, 3), np.uint8), "strength": 0.1, "steps": 5}, "steps", 10),
    ],
)
def test_jobs_that_cannot_run(changes: dict[str, Any], field: str, nearest: object) -> None:
    with pytest.raises(SettingsError) as caught:
        replace(QUICK, **changes)
    assert (caught.value.field, caught.value.nearest) == (field, nearest)


def test_a_broken_model_is_said_to_be(tiny_folder: Path) -> None:
    broken = load(tiny_folder, "cpu")
    broken.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(HostError, match="not a number"):
        run(broken, QUICK)


def test_no_memory_is_said(pipeline: Any) -> None:
    def exhaust(*_: object) -> None:
        torch.empty(1 << 60)

    with pytest.raises(HostError, match="not enough memory"), pipeline.unet.register_forward_pre_hook(exhaust):
        run(pipeline, QUICK)


def photo() -> Pixels:
    y, x = np.mgrid[:64, :64]
    return np.stack([4 * x, 4 * y, 255 - 2 * (x + y)], -1).astype(np.uint8)


def left_half() -> Pixels:
    return np.repeat((np.arange(64) < 32)[None], 64, 0).astype(np.uint8) * 255


def inputs(task: str) -> dict[str, Any]:
    if task == "txt2img":
        return {}
    return {"init": photo()} if task == "img2img" else {"init": photo(), "mask": left_half()}


def assert_same_weights(one: Any, other: Any) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("which", ["pipeline", "sdxl"])
@pytest.mark.parametrize("task", ["txt2img", "img2img", "inpaint"])
def test_prompts_that_change_on_the_way(request: pytest.FixtureRequest, which: str, task: str) -> None:
    """Each call of the UNet gets the prompts of its progress, for every picture and both halves."""
    base = request.getfixturevalue(which)
    later = (Prompts(0.3, "a dog", "blurry"), Prompts(0.6, "a cow", "ugly"))
    job = replace(QUICK, prompt="a cat", steps=5, batch=2, strength=1.0, later=later, **inputs(task))
    texts = [(0.0, "a cat", ""), *((one.start, one.prompt, one.negative_prompt) for one in later)]
    known = [encode_prompts.encode(base, prompt, negative, guided=True) for _, prompt, negative in texts]
    seen: list[tuple[int, int]] = []

    @contextmanager
    def around(running: Any) -> Generator[None]:
        def note(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            got = kwargs["encoder_hidden_states"]
            wanted = 1 - float(args[1]) / 999
            expected = max(number for number, (start, *_) in enumerate(texts) if start <= wanted or number == 0)
            rows = [known[expected][name] for name in ("negative_prompt_embeds", "prompt_embeds")]
            assert torch.equal(got, torch.cat([row.repeat(2, 1, 1) for row in rows]))
            seen.append((expected, len(got)))

        hook = running.unet.register_forward_pre_hook(note, with_kwargs=True)
        yield
        hook.remove()

    run(base, job, around=around)
    assert [number for number, _ in seen] == sorted(number for number, _ in seen)
    assert {number for number, _ in seen} == {0, 1, 2} and {rows for _, rows in seen} == {4}


def test_without_guidance_prompts_change_too(pipeline: Any) -> None:
    job = replace(QUICK, guidance=1.0)
    plain = run(pipeline, job)[0]
    changed = run(pipeline, replace(job, later=(Prompts(0.3, "a dog", ""),)))[0]
    same = run(pipeline, replace(job, later=(Prompts(0.3, job.prompt, ""),)))[0]
    assert (plain == same).all() and (plain != changed).any()
