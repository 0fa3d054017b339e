"""The small base's files: the export read back, and what an installation puts beside it for each WebUI."""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dp_adapter.cli import main
from dp_adapter.errors import HostError
from dp_adapter.hosts.pipelines import ldm_config
from dp_adapter.hosts.pipelines.load_pipeline import load
from dp_adapter.hosts.pipelines.single_file import made_for
from dp_adapter.small_base.webui_files import ADAPTER, NAME, SHIPPED, install
from dp_adapter.weights.library import Library
from tests import tiny
from tests.hosts import ldm_unet
from tools.small_base import ldm_names
from tools.small_base.export import METADATA, PARTS, export
from tools.tiny_base import tiny_pipeline

diffusers: Any = importlib.import_module("diffusers")  # its lazy names have no types
UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 64, 64),
    "attention_head_dim": (1, 2, 2, 2),
    "cross_attention_dim": 64,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
VAE: dict[str, Any] = {
    "block_out_channels": (32, 32, 32, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 128,
}


@pytest.fixture(scope="module")
def base() -> Any:
    torch.manual_seed(0)
    return tiny_pipeline.assemble(
        diffusers.UNet2DConditionModel(**UNET),
        diffusers.AutoencoderKL(**VAE),
        CLIPTextModel(CLIPTextConfig(**tiny_pipeline.TEXT_CONFIG)),
    )


@pytest.fixture(scope="module")
def shipped(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    base.save_pretrained(folder / "diffusers")
    export(folder / "diffusers", folder)
    return folder


@pytest.fixture
def webui(shipped: Path, tmp_path: Path) -> Path:
    checkpoints = tmp_path / "models" / "Stable-diffusion"
    checkpoints.mkdir(parents=True)
    install(tmp_path, shipped)
    return checkpoints


def test_diffusers_reads_the_file_by_the_folder_beside_it(base: Any, shipped: Path) -> None:
    read = load(shipped / f"{NAME}.safetensors", "cpu")
    for part in PARTS:
        written, found = getattr(base, part).state_dict(), getattr(read, part).state_dict()
        assert written.keys() == found.keys()
        assert all(torch.equal(value.half().float(), found[key]) for key, value in written.items())
    assert dict(read.scheduler.config).items() >= tiny_pipeline.SCHEDULER_CONFIG.items()


def test_the_adapter_goes_where_the_webui_looks(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "Stable-diffusion").mkdir(parents=True)
    assert len(install(tmp_path, shipped)) == 3  # there is none yet
    adapter = shipped / ADAPTER
    adapter.write_bytes(b"weights")
    try:
        installed = install(tmp_path, shipped)
    finally:
        adapter.unlink()
    assert installed[3] == tmp_path / "models" / "dp_adapter" / ADAPTER and installed[3].read_bytes() == b"weights"


def test_the_shipped_adapter_is_in_nobodys_list() -> None:
    assert (SHIPPED / ADAPTER).is_file()
    assert ADAPTER not in Library((), False, [SHIPPED.parent]).files()


def test_the_adapter_is_shipped_in_half_precision(shipped: Path, tmp_path: Path) -> None:
    trained = {"projection.norm.weight": torch.rand(4), "sites.0.to_k.weight": torch.rand(2, 2)}
    save_file(trained, str(tmp_path / "adapter.safetensors"), {"format": "dp_adapter", "encoder": "sface"})
    export(shipped / "diffusers", tmp_path, tmp_path / "adapter.safetensors")
    with safe_open(str(tmp_path / ADAPTER), framework="pt") as file:
        assert file.metadata() == {"format": "dp_adapter", "encoder": "sface"}
        assert all(torch.equal(file.get_tensor(key), value.half()) for key, value in trained.items())
    assert hashlib.sha256((tmp_path / ADAPTER).read_bytes()).hexdigest() in (tmp_path / "README.md").read_text()


def test_licence_and_checksum_are_beside_it(shipped: Path) -> None:
    text = (shipped / "README.md").read_text()
    assert "Licence: Apache-2.0" in text
    assert hashlib.sha256((shipped / f"{NAME}.safetensors").read_bytes()).hexdigest() in text


def test_the_files_checksum_does_not_change(shipped: Path) -> None:
    with safe_open(str(shipped / f"{NAME}.safetensors"), framework="pt") as file:
        assert file.metadata() == METADATA
    header = (shipped / f"{NAME}.safetensors").read_bytes()[8:2000].decode()
    places = [header.index(f'"{key}"') for key in sorted(METADATA)]
    assert places == sorted(places), "safetensors writes them in any order"


def test_the_yaml_describes_this_unet_to_ldm(base: Any, webui: Path) -> None:
    described = json.loads((webui / f"{NAME}.yaml").read_text())
    settings = described["model"]["params"]["unet_config"]["params"]
    prefix = "model.diffusion_model."
    state = {key.removeprefix(prefix): value for key, value in ldm_names.unet(base.unet).items()}
    unet = ldm_unet.build(settings, state)
    torch.manual_seed(1)
    given = tiny.Inputs(torch.randn(2, 4, 16, 16), torch.randn(2, 77, 64), 300.0)
    with torch.no_grad():
        wanted = base.unet(given.latents, given.timestep, given.context).sample
        assert torch.allclose(ldm_unet.call(unet, given), wanted, atol=1e-5)


def test_a_base_model_is_no_adapter(webui: Path) -> None:
    assert (webui / f"{NAME}.safetensors").is_file()
    assert Library([], False, [webui]).files() == {}


def test_the_text_encoders_folder_is_all_that_ldm_needs(webui: Path) -> None:
    params = json.loads((webui / f"{NAME}.yaml").read_text())["model"]["params"]
    folder = Path(params["cond_stage_config"]["params"]["version"])
    assert folder.is_absolute()
    assert CLIPTextConfig.from_pretrained(folder).hidden_size == 64
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert params["first_stage_config"]["params"]["ddconfig"]["ch_mult"] == [1, 1, 1, 1]


def test_heads_of_unequal_size_cannot_be_described(shipped: Path, tmp_path: Path) -> None:
    for name in ("unet", "vae", "scheduler"):
        (tmp_path / name).mkdir()
        for file in (shipped / NAME / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "unet" / "config.json").read_text()) | {"attention_head_dim": [1, 1, 2, 2]}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(HostError, match="heads"):
        ldm_config.unet(tmp_path)


def test_where_it_cannot_be_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Stable-diffusion").mkdir()
    with pytest.raises(HostError, match="no folder"):
        install(tmp_path / "absent")
    with pytest.raises(HostError, match="not in"):
        install(tmp_path, tmp_path)
    assert main(["demo-base", "install"]) == 1
    assert "Give the WebUI's folder" in capsys.readouterr().err


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("there", "says"),
    [
        (["modules", "models/dp_adapter"], "no folder models/Stable-diffusion. Start it once"),  # never started
        (["extensions"], "no folder models/Stable-diffusion"),
        (["pictures"], "neither a WebUI's folder nor one with checkpoints"),
        ([], "--ckpt-dir"),
        (["modules_forge", "models/Stable-diffusion"], "not among its extensions"),
        (["modules_forge", "models/Stable-diffusion", "extensions/old/dp_adapter/webui"], "or update it there"),
    ],
)
def test_a_folder_where_it_would_not_be_found_is_refused(
    shipped: Path, tmp_path: Path, there: list[str], says: str
) -> None:
    with pytest.raises(HostError) as refused:
        install(folders(tmp_path / "webui", "any", *there), shipped)
    assert says in str(refused.value)
    assert not files_in(tmp_path)


def test_checkpoints_inside_forge_need_the_extension_too(shipped: Path, tmp_path: Path) -> None:
    webui = folders(tmp_path, "modules_forge", "models/Stable-diffusion")
    with pytest.raises(HostError, match="extensions"):
        install(webui / "models" / "Stable-diffusion", shipped)
    extension = folders(webui / "extensions", "dp/dp_adapter/webui/host")
    (extension / "dp/dp_adapter/webui/host/reforge_widths.py").touch()
    assert install(webui / "models" / "Stable-diffusion", shipped)


def test_a_folder_of_models_or_checkpoints(shipped: Path, tmp_path: Path) -> None:
    usual = folders(tmp_path, "models/Stable-diffusion") / "models" / "Stable-diffusion"
    for place in (tmp_path, tmp_path / "models", usual):  # the second is the one of --models-dir
        assert install(place, shipped)[0] == usual / f"{NAME}.safetensors"
    own = folders(tmp_path / "own", "empty") / "empty"
    (tmp_path / "own" / "some.safetensors").touch()
    assert install(tmp_path / "own", shipped)[0].parent == tmp_path / "own"
    assert install(None, shipped, checkpoints=own)[0].parent == own


def test_a_damaged_download_is_not_installed(shipped: Path, tmp_path: Path) -> None:
    broken = folders(tmp_path, "broken", f"broken/{NAME}", "models/Stable-diffusion") / "broken"
    (broken / f"{NAME}.safetensors").write_bytes((shipped / f"{NAME}.safetensors").read_bytes()[:-100])
    with pytest.raises(HostError, match="truncated or damaged"):
        install(tmp_path, broken)
    assert not files_in(tmp_path / "models")


def test_the_command_says_what_to_choose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = folders(tmp_path, "own") / "own"
    assert main(["demo-base", "install", "--ckpt-dir", str(own)]) == 0
    told = capsys.readouterr().out
    assert ADAPTER in told and "copy it into the WebUI's models/dp_adapter" in told  # nobody knows where that is
    assert f"Choose {NAME} as the WebUI's checkpoint, 128 × 128 px, CFG scale 3, Clip skip 1." in told
    webui = folders(tmp_path, "webui/models/Stable-diffusion") / "webui"
    assert main(["demo-base", "install", str(webui), "--ckpt-dir", str(own)]) == 0
    assert "copy it" not in capsys.readouterr().out and (webui / "models" / "dp_adapter" / ADAPTER).is_file()


def test_what_a_checkpoint_was_made_for(webui: Path) -> None:
    assert made_for(webui / f"{NAME}.safetensors") == "128 × 128 px, CFG scale 3, Clip skip 1"
    assert made_for(webui / "other.safetensors") == ""
