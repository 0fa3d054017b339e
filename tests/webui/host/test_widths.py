"""A checkpoint of other widths in Forge, neo, reForge and classic: each is led to the configurations beside it."""

import json
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dp_adapter.small_base.webui_files import NAME, SHIPPED
from dp_adapter.webui.host import forge_widths, reforge_widths
from tests.webui import fake_webui

NARROW = {"context_dim": 64, "model_channels": 64, "use_linear_in_transformer": False, "num_res_blocks": 2}
HEADS = {"num_heads": -1, "num_head_channels": 32}


class SD15:
    """huggingface_guess@84826248 ``model_list.py``: what of ``BASE`` and ``SD15`` decides about widths.

    The same in ``ldm_patched/modules/supported_models.py``.
    """

    unet_config: Mapping[str, Any] = {
        "context_dim": 768,
        "model_channels": 320,
        "use_linear_in_transformer": False,
    }
    huggingface_repo = "runwayml/stable-diffusion-v1-5"
    unet_extra_config: Mapping[str, int] = {"num_heads": 8, "num_head_channels": -1}

    def __init__(self, unet_config: dict[str, Any]) -> None:
        self.unet_config = {**unet_config, **self.unet_extra_config}

    @classmethod
    def matches(cls, unet_config: Mapping[str, Any], _state_dict: object = None) -> bool:
        return all(unet_config[key] == value for key, value in cls.unet_config.items())

    def clip_target(self, **_state_dict: Any) -> Any:
        return SimpleNamespace(params={})


@pytest.fixture
def checkpoints() -> Path:
    return SHIPPED


@pytest.fixture
def forge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[SimpleNamespace]:
    """Forge's list of kinds and its engines, and what it says of the checkpoint that it loads."""
    listed, loader = ModuleType("huggingface_guess.model_list"), ModuleType("backend.loader")
    vars(listed).update(SD15=SD15, models=[SD15])
    engines = (SimpleNamespace(matched_guesses=[object]), SimpleNamespace(matched_guesses=[SD15]))
    vars(loader).update(possible_models=engines, __file__=str(tmp_path / "backend" / "loader.py"))
    forge_widths.register()  # another WebUI: nothing to do
    monkeypatch.setitem(sys.modules, listed.__name__, listed)
    monkeypatch.setitem(sys.modules, loader.__name__, loader)
    forge_widths.register()
    forge_widths.register()  # "Reload UI"
    with fake_webui.installed(tmp_path / "models") as modules:
        parameters: dict[str, Any] = {}
        vars(modules["modules.sd_models"])["model_data"].forge_loading_parameters = parameters
        yield SimpleNamespace(kinds=listed.models, engines=engines, parameters=parameters, backend=tmp_path / "backend")


def test_forge_is_led_to_the_folder(forge: SimpleNamespace, checkpoints: Path) -> None:
    known, kind = forge.kinds
    assert (known, issubclass(kind, SD15)) == (SD15, True)
    assert not kind.matches(NARROW, {})
    forge.parameters["checkpoint_info"] = SimpleNamespace(filename=str(checkpoints / "other.safetensors"))
    assert not kind.matches(NARROW, {})
    forge.parameters["checkpoint_info"] = SimpleNamespace(filename=str(checkpoints / f"{NAME}.safetensors"))
    assert not kind.matches(NARROW | {"context_dim": 768}, {})
    assert kind.matches(NARROW, {})
    made = kind(NARROW)
    assert made.unet_config == NARROW | HEADS
    led = forge.backend / "huggingface" / made.huggingface_repo
    assert json.loads((led / "model_index.json").resolve().read_text())["unet"] == ["diffusers", "UNet2DConditionModel"]


def test_neo_finds_the_engine_by_the_exact_type(forge: SimpleNamespace) -> None:
    other, engine = forge.engines
    assert other.matched_guesses == [object]
    assert engine.matched_guesses == forge.kinds and len(forge.kinds) == 2


def test_neo_finds_no_family_in_the_path_of_the_webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for "Wan" and the like in the name of the repository."""
    loader = ModuleType("backend.loader")
    loader.__file__ = str(tmp_path / "Wang" / "webui" / "backend" / "loader.py")
    monkeypatch.setitem(sys.modules, loader.__name__, loader)
    led = forge_widths._relative_to_repositories(tmp_path / "Wang" / "webui" / "models" / "Stable-diffusion" / NAME)  # pyright: ignore[reportPrivateUsage]
    assert "Wan" not in led and Path(led).name == NAME


@pytest.fixture
def reforge(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The loader of reForge and classic as far as widths go: a kind, then a VAE, then a text encoder."""
    seen: list[Any] = []

    def vae(**options: Any) -> dict[str, Any]:
        return options

    def text_encoder(**options: Any) -> dict[str, Any]:
        return options

    supported, loader = ModuleType("ldm_patched.modules.supported_models"), ModuleType("modules_forge.forge_loader")
    vars(supported).update(SD15=SD15, models=[SD15], sd1_clip=SimpleNamespace(SDClipModel=text_encoder))

    def load_model_for_a1111(timer: Any, checkpoint_info: Any = None, state_dict: Any = None) -> Any:
        """A model; ``checkpoint_info`` is the file's."""
        kinds = [kind for kind in vars(supported)["models"] if kind.matches(state_dict)]
        if not kinds:
            raise RuntimeError("Could not detect model type")
        made = kinds[0](state_dict)
        clip = made.clip_target(state_dict={}).params.get("clip_model", text_encoder)
        seen.append((timer, made, vars(loader)["VAE"](sd={}), clip()))
        return "model"

    vars(loader).update(VAE=vae, load_model_for_a1111=load_model_for_a1111)
    monkeypatch.setitem(sys.modules, supported.__name__, supported)
    monkeypatch.setitem(sys.modules, loader.__name__, loader)
    reforge_widths.register()
    once = vars(loader)["load_model_for_a1111"]
    reforge_widths.register()  # "Reload UI"
    assert vars(loader)["load_model_for_a1111"] is once
    return SimpleNamespace(loader=loader, supported=supported, seen=seen, vae=vae)


def load(reforge: SimpleNamespace, name: str, unet: Mapping[str, Any]) -> Any:
    info = SimpleNamespace(filename=str(SHIPPED / name))
    try:
        return reforge.loader.load_model_for_a1111(timer="timer", checkpoint_info=info, state_dict=dict(unet))
    finally:
        assert reforge.supported.models == [SD15] and reforge.loader.VAE is reforge.vae


def test_reforge_is_led_while_it_loads(reforge: SimpleNamespace) -> None:
    assert load(reforge, f"{NAME}.safetensors", NARROW) == "model"
    timer, made, vae, clip = reforge.seen[0]
    assert timer == "timer" and isinstance(made, SD15) and made.unet_config == NARROW | HEADS
    assert vae["config"]["params"]["ddconfig"]["ch_mult"] == [1, 1, 1, 2] and vae["sd"] == {}
    assert Path(clip["textmodel_json_config"]) == SHIPPED / NAME / "text_encoder" / "config.json"


def test_reforges_other_checkpoints_are_as_ever(reforge: SimpleNamespace) -> None:
    assert load(reforge, "other.safetensors", SD15.unet_config) == "model"
    _, made, vae, clip = reforge.seen[0]
    assert type(made) is SD15 and (vae, clip) == ({"sd": {}}, {})
    with pytest.raises(RuntimeError, match="Could not detect"):  # narrow, but nothing beside it
        load(reforge, "other.safetensors", NARROW)
    with pytest.raises(RuntimeError, match="Could not detect"):  # not what the folder describes
        load(reforge, f"{NAME}.safetensors", NARROW | {"context_dim": 32})
