"""InstantID's IdentityNet: what the host's ControlNet is given for each person. [method: arXiv 2401.07519]

Its cross-attention gets the identity tokens in place of the text, and its picture the keypoints of the face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from dp_adapter.core.types import Tokens
from dp_adapter.errors import SettingsError
from dp_adapter.hints import command
from dp_adapter.identity.crops.keypoint_picture import draw_keypoints
from dp_adapter.identity.faces.face import TEMPLATE, Floats
from dp_adapter.identity.pictures.picture_files import Picture
from dp_adapter.session.photos.reference_photos import Known, SeenPhoto
from dp_adapter.session.scene import Scene
from dp_adapter.settings import IdentityNet
from dp_adapter.weights.library import Library

_NAMES = ("instantid", "instant_id", "instant-id", "identitynet", "identity_net")
_CROP = 112.0  # side of the crop that TEMPLATE's points are given in


@dataclass(frozen=True, eq=False)
class NetPerson:
    """One person as IdentityNet takes them.

    Attributes:
        tokens: in place of the text.
        hint: keypoints, RGB [h, w, 3] of the picture's size.
        mask: where it acts [1, h, w]; None for everywhere.
    """

    tokens: Tokens
    hint: Picture
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class Net:
    """The IdentityNet of one generation.

    Attributes:
        model: its file.
        weight, end: strength, and progress at which it stops.
    """

    model: Path
    weight: float
    end: float
    persons: tuple[NetPerson, ...]


def choose_net(settings: IdentityNet, library: Library, controls: bool) -> tuple[Path | None, tuple[str, ...]]:
    """The file of the IdentityNet, and what to tell where InstantID has to do without it.

    Args:
        controls: whether the host has a ControlNet.

    Raises:
        SettingsError: it was asked for and cannot be had, or several files may be it.
    """
    if settings.use == "off" or settings.weight == 0:
        return None, ()
    if not controls:
        if settings.use == "on":
            raise SettingsError(
                "identity_net.use",
                "no ControlNet is here that it can use",
                "Use Forge, or AUTOMATIC1111 with the extension sd-webui-controlnet; or 'auto', which leaves it out.",
                "auto",
            )
        return None, ("IdentityNet was left out: no ControlNet is here that it can use.",)
    path = find_net(settings, library)
    return path, () if path else ("IdentityNet was left out: it is not among ControlNet's models.",)


def find_net(settings: IdentityNet, library: Library) -> Path | None:
    """The file of the IdentityNet; None where there is none and it need not be.

    Its keys are those of every ControlNet for SDXL, so only its name can tell; a name that was given is taken.

    Raises:
        SettingsError: it was asked for and is not here, or several files may be it.
    """
    if settings.model:
        return library.resolve(settings.model)
    files = library.files()
    found = [
        name for name in files if any(sign in name.lower() for sign in _NAMES) and "ip-adapter" not in name.lower()
    ]
    found = [name for name in found if "ip_adapter" not in name.lower()]
    if len(found) == 1:
        return files[found[0]]
    if len(found) > 1:
        raise SettingsError(
            "identity_net.model", f"several files may be the IdentityNet: {', '.join(sorted(found))}", "Name one."
        )
    if settings.use == "on":
        raise SettingsError(
            "identity_net.use",
            "there is no IdentityNet among ControlNet's models",
            "Put InstantID's ControlNetModel/diffusion_pytorch_model.safetensors into models/ControlNet as "
            f"instantid-controlnet.safetensors ({command('models list')} has its address), or use 'auto'.",
            "auto",
        )
    return None


def net_person(
    tokens: Tokens, photos: Sequence[Known], init: Floats | None, mask: Tensor | None, scene: Scene
) -> NetPerson:
    """One person's keypoints where their face is to be.

    Args:
        photos: the first one gives the pose.
        init: the five points of their face in the init picture [5, 2], in px of the scene; None where there is none.
        mask: their region [S, h, w], as far as it is known before sampling.
    """
    if init is not None:
        points = init
    elif mask is not None:
        points = fit_points(_pose(photos), _bounds(mask, scene))
    else:
        points = _as_in_photo(photos, scene)
    return NetPerson(tokens, draw_keypoints([points], scene.width, scene.height), None if mask is None else mask[:1])


def fit_points(pose: Floats, bounds: tuple[float, float, float, float]) -> Floats:
    """Points of a face in its own box [5, 2], sides 0 to 1, into a box x0, y0, x1, y1 in px, as large as fits."""
    x0, y0, x1, y1 = bounds
    side = min(x1 - x0, (y1 - y0) / 1.25)  # a face is higher than wide
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2], np.float32)
    return (centre + (pose - 0.5) * np.array([side, side * 1.25], np.float32)).astype(np.float32)


def _pose(photos: Sequence[Known]) -> Floats:
    """The five points in the face's own box; a saved identity has none, and looks straight ahead."""
    one = next((photo for photo in photos if isinstance(photo, SeenPhoto)), None)
    if one is None:
        return (TEMPLATE / np.float32(_CROP)).astype(np.float32)
    x1, y1, x2, y2 = one.face.box.tolist()
    size = np.array([max(x2 - x1, 1.0), max(y2 - y1, 1.0)], np.float32)
    return ((one.face.points - np.array([x1, y1], np.float32)) / size).astype(np.float32)


def _as_in_photo(photos: Sequence[Known], scene: Scene) -> Floats:
    """The face where the photo has it, the photo fitted into the picture, as the published pipeline does."""
    one = next((photo for photo in photos if isinstance(photo, SeenPhoto)), None)
    if one is None:
        side = 0.4 * min(scene.width, scene.height)
        x, y = scene.width / 2, 0.4 * scene.height
        return fit_points(_pose(photos), (x - side / 2, y - side / 1.6, x + side / 2, y + side / 1.6))
    height, width = one.picture.shape[:2]
    scale = min(scene.width / width, scene.height / height)
    shift = np.array([scene.width - scale * width, scene.height - scale * height], np.float32) / 2
    return (one.face.points * np.float32(scale) + shift).astype(np.float32)


def _bounds(mask: Tensor, scene: Scene) -> tuple[float, float, float, float]:
    """The box around what is more than half on in a mask [S, h, w], in px; the whole picture where nothing is."""
    covered = (mask.amax(0) > 0.5).nonzero()
    if not len(covered):
        return 0.0, 0.0, float(scene.width), float(scene.height)
    first, last = covered.amin(0), covered.amax(0) + 1
    across, down = scene.width / mask.shape[-1], scene.height / mask.shape[-2]
    return float(first[1]) * across, float(first[0]) * down, float(last[1]) * across, float(last[0]) * down
