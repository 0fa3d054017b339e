"""EVA02-CLIP's image tower, which PuLID sees faces with: found in the model folders, read with sizes from shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dp_adapter.errors import WeightsError
from dp_adapter.identity.encoders.clip import MEAN, STD
from dp_adapter.identity.encoders.encoder_device import EncoderDevice, LazyNetwork
from dp_adapter.identity.encoders.encoder_versions import fingerprint
from dp_adapter.identity.faces.face import Floats
from dp_adapter.user_files import is_file, list_folder

if TYPE_CHECKING:
    import torch

    from dp_adapter.identity.encoders.eva_net import EvaShape, EvaTower

FOLDERS = ("clip_vision", "eva_clip", "clip", "pulid")  # A1111 and Forge, ComfyUI's PuLID nodes
# huggingface_hub's folders: of the ControlNet extension's EVA-CLIP, of whatever else downloaded it.
CACHED = "models--QuanSun--EVA-CLIP/snapshots"
EXTENSIONS = ("sd-webui-controlnet-evaclip/models/" + CACHED, "sd-webui-controlnet/annotator/downloads/clip_vision")
HUB = Path("~/.cache/huggingface/hub") / CACHED
_PICKLES = (".pt", ".pth", ".bin")
_LARGEST = 2048  # pixels a side; the public tower sees 336
_HEAD = 64  # of all public towers; a narrower one is one head
_ANCHOR = "blocks.0.attn.q_proj.weight"
# What timm, which carries the tower as .safetensors, calls the same parameters.
_TIMM = (
    ("attn.q_proj.bias", "attn.q_bias"),
    ("attn.v_proj.bias", "attn.v_bias"),
    ("attn.norm.", "attn.inner_attn_ln."),
    ("mlp.norm.", "mlp.ffn_ln."),
    ("mlp.fc1_g.", "mlp.w1."),
    ("mlp.fc1_x.", "mlp.w2."),
    ("mlp.fc2.", "mlp.w3."),
)


@dataclass(frozen=True, eq=False)
class EvaFeatures:
    """Of one picture.

    Args:
        pooled: image embedding [1, output], not normalised.
        hidden: what comes out of five of its blocks, [1, 5, L, W].
    """

    pooled: torch.Tensor
    hidden: torch.Tensor


class EvaVision:
    """An EVA02-CLIP image tower, loaded at first use.

    Args:
        path: QuanSun/EVA-CLIP's ``.pt``, or a ``.safetensors`` file under its names or timm's.
        placement: where it runs; on the CPU when None.

    Raises:
        WeightsError: no such file, damaged, or not such a tower.
    """

    def __init__(self, path: Path, placement: EncoderDevice | None = None) -> None:
        self._path = path
        self.shape = read_shape(path)
        self.kind = f"eva/{self.shape.width}x{self.shape.depth}x{self.shape.output}"
        self.name = f"{self.kind}/{path.stem}"
        place = placement or EncoderDevice()
        self._network = LazyNetwork(self.name, self._build, place, half=place.half)

    @property
    def version(self) -> str:
        """Fingerprint of the weight file."""
        return fingerprint([self._path])

    @property
    def loaded(self) -> bool:
        """Whether the network is in memory."""
        return self._network.loaded

    def encode(self, picture: Floats) -> EvaFeatures:
        """Features of a square RGB picture [s, s, 3] in 0..1 of any size."""
        pooled, hidden = self._network.run(preprocess(picture, self.shape.pixels), lambda net, pixels: net(pixels))
        return EvaFeatures(pooled, hidden)

    def _build(self) -> EvaTower:
        import torch

        from dp_adapter.identity.encoders.eva_net import EvaTower
        from dp_adapter.weights.damage import explain, require_plain

        try:
            with torch.device("meta"):  # no time and memory for random numbers that are replaced
                model = EvaTower(self.shape)
            weights = _tensors(self._path)
            require_plain(self._path, weights)
            model.load_state_dict(weights, strict=True, assign=True)
        except WeightsError:
            raise
        except Exception as error:
            raise WeightsError(
                f"{self._path} is damaged or incomplete ({explain(error)})", "Download it again."
            ) from error
        return model


def preprocess(picture: Floats, size: int) -> torch.Tensor:
    """[s, s, 3] in 0..1 -> [1, 3, size, size] with CLIP's mean and deviation.

    Bicubic without antialiasing, as torchvision 0.15, which PuLID names, resizes tensors.
    """
    import torch

    pixels = torch.as_tensor(np.ascontiguousarray(np.moveaxis(picture, -1, 0), np.float32))[None]
    pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bicubic", align_corners=False)
    mean, deviation = (torch.as_tensor(value)[:, None, None] for value in (MEAN, STD))
    return (pixels - mean) / deviation


def find_candidates(roots: Sequence[Path]) -> Iterator[Path]:
    """Files that may be towers, those with ``eva`` in their name first.

    A pickle has to be unpacked to be looked into, so only those with that name are.
    """
    folders = [root / name for root in roots for name in FOLDERS]
    for root in roots:
        for extension in EXTENSIONS:
            folders += _with_snapshots(root.parent / "extensions" / extension)
    folders += _with_snapshots(HUB.expanduser())
    found = [path for folder in folders for path in list_folder(folder) if is_file(path)]
    named = [path for path in found if "eva" in path.name.lower() and path.suffix in (*_PICKLES, ".safetensors")]
    yield from named
    yield from (path for path in found if path.suffix == ".safetensors" and path not in named)


def _with_snapshots(folder: Path) -> list[Path]:
    return [folder, *list_folder(folder)]


def read_shape(path: Path) -> EvaShape:
    """Sizes from the tensors; the width of a head from the rotation that EVA-CLIP stores, where it is there.

    Raises:
        WeightsError: as `EvaVision`.
    """
    from dp_adapter.identity.encoders.eva_net import HIDDEN, EvaShape

    shapes = _shapes(path)
    own = _tower_only(shapes)
    try:
        width, _, patch, _ = own["patch_embed.proj.weight"]
        shape = EvaShape(
            width=width,
            inner=own["blocks.0.mlp.w1.weight"][0],
            depth=len({match[1] for key in own if (match := re.match(r"blocks\.(\d+)\.", key))}),
            head=next((s[-1] for key, s in shapes.items() if key.endswith("rope.freqs_cos")), min(_HEAD, width)),
            patch=patch,
            side=round((own["pos_embed"][1] - 1) ** 0.5),
            output=own["head.weight"][0],
        )
    except Exception as error:  # sizes are taken as they should be; a file may have any
        problem = f"{path} is not an image tower of EVA02-CLIP ({error})"
        raise WeightsError(problem, "Use EVA02_CLIP_L_336_psz14_s6B.pt of QuanSun/EVA-CLIP.") from error
    if (
        shape.depth <= HIDDEN[-1]
        or own["pos_embed"][1] != shape.tokens
        or width % shape.head
        or shape.pixels > _LARGEST
    ):
        problem = f"{path} has sizes that no tower for PuLID has ({shape})"
        raise WeightsError(problem, "Use EVA02_CLIP_L_336_psz14_s6B.pt of QuanSun/EVA-CLIP.")
    return shape


def _tower_only(named: Mapping[str, Any]) -> dict[str, Any]:
    """What of a file belongs to the tower, under EVA-CLIP's names without ``visual.``; the rotation is computed."""
    prefix = next((key.removesuffix(_ANCHOR) for key in named if key.endswith(_ANCHOR)), None)
    if prefix is None:
        return {}
    own = {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}
    renamed: dict[str, Any] = {}
    for key, value in own.items():
        if ".freqs_" in key or "rope." in key:
            continue
        for theirs, ours in _TIMM:
            key = key.replace(theirs, ours)  # noqa: PLW2901
        renamed[key] = value
    return renamed


def _shapes(path: Path) -> dict[str, list[int]]:
    if path.suffix != ".safetensors":
        return {key: list(value.shape) for key, value in _unpickle(path).items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - it has no iterator
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or not a .safetensors file", "Download it again.") from error


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix != ".safetensors":
        return _tower_only(_unpickle(path))
    from safetensors.torch import load_file

    return _tower_only(load_file(str(path)))


def _unpickle(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``torch.save`` file, mapped, without running code from it."""
    import torch

    from dp_adapter.pickles import unpickle

    content = unpickle(path)
    if isinstance(content, dict):  # training checkpoints nest the weights
        for name in ("model", "module", "state_dict"):
            content = cast("dict[str, Any]", content).get(name, content)
    if not isinstance(content, dict):
        return {}
    return {
        str(key): value for key, value in cast("dict[Any, Any]", content).items() if isinstance(value, torch.Tensor)
    }
