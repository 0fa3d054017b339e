"""W+ adapters in a request: latents and nothing else, moved along directions of StyleGAN's space.

The directions are the official ones, which are not ours to ship; what they do is read from
csxmli2016/w-plus-adapter@c649408 ``script/utils_direction.py`` and ``test_demo.ipynb``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dp_adapter.errors import SettingsError, WeightsError
from dp_adapter.session.photos.latents import Latent
from dp_adapter.session.photos.reference_photos import Known
from dp_adapter.settings import WPlus
from dp_adapter.settings.messages import closest
from dp_adapter.weights.checkpoint import Checkpoint
from dp_adapter.weights.files import open_weights
from dp_adapter.weights.w_plus_latents import LATENT, read_arrays

FOLDER = "dp_adapter/w_directions"
_EARLY = 8  # layers that a direction of ``latent_directions`` moves; the official demo leaves the finer ones
_NAME = re.compile(r"\w[\w \-]*(/\w[\w \-]*)?")
_PCA, _CONFIGS = "gan_space/ffhq_pca.pt", "gan_space/ganspace_configs.csv"
_SOURCE = (
    "Copy the folder w_direction of github.com/csxmli2016/w-plus-adapter (S-Lab License 1.0, non-commercial) there "
    "as models/dp_adapter/w_directions."
)


def require_kind(checkpoint: Checkpoint, photos: Sequence[Known], latents: Sequence[Latent]) -> None:
    """Raises SettingsError unless W+ adapters are given latents only, and all others none."""
    by_latents = "w-plus" in checkpoint.encoders
    if latents and not by_latents:
        problem = f"a latent is of no use to {checkpoint.title}"
        raise SettingsError(latents[0].field, problem, "Give a photo, or choose a W+ adapter.")
    if by_latents and (photos or not latents):
        raise SettingsError(
            "references",
            f"{checkpoint.title} takes latents of StyleGAN2, and a photo cannot be turned into one here",
            "Encode it with e4e (docs/formats.md), put the file into models/dp_adapter/latents and give latent:NAME.",
        )


class Directions:
    """Files under ``<root>/dp_adapter/w_directions``, in the folders of the official repository or without them.

    Args:
        roots: model folders, searched in order.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._folders = tuple(root / FOLDER for root in roots)

    def move(self, latents: Tensor, asked: WPlus) -> Tensor:
        """The latents [n, 18, 512] after the moves of a request.

        Raises:
            SettingsError: a direction is not here, or its file is none; names the field and where to get it.
        """
        if asked.age:
            latents = self._along(latents, "age", asked.age, "w_plus.age")
        if asked.direction and asked.amount:
            latents = self._along(latents, asked.direction, asked.amount, "w_plus.direction")
        return latents

    def _along(self, latents: Tensor, name: str, amount: float, field: str) -> Tensor:
        files = self._files()
        path = next((path for key, path in files.items() if name in {key, key.rpartition("/")[2]}), None)
        try:
            if _NAME.fullmatch(name) and path is not None:
                return latents + amount * _direction(path)
            if (component := self._component(name)) is not None:
                return torch.stack([component.move_to(one, amount) for one in latents])
        except WeightsError as error:
            raise SettingsError(field, error.problem, error.hint) from error
        named = {key.rpartition("/")[2]: key for key in files} if field == "w_plus.direction" else {}
        near = named.get(closest(name.rpartition("/")[2], named) or "")
        where = " or ".join(map(str, self._folders))
        problem = f"there is no direction '{name[:80]}' in {where or 'any models folder'}"
        raise SettingsError(field, problem, f"Did you mean '{near}'? Else: {_SOURCE}" if near else _SOURCE, near)

    def _files(self) -> dict[str, Path]:
        """Directions by path without ending; those of InterFaceGAN, which move all layers, first."""
        found: dict[str, Path] = {}
        for suffix in (".pt", ".npy"):
            for folder in self._folders:
                for path in sorted(folder.rglob(f"*{suffix}")) if folder.is_dir() else ():
                    name = path.relative_to(folder).with_suffix("").as_posix()
                    if path.relative_to(folder).as_posix() != _PCA:
                        found.setdefault(name, path)
        return found

    def _component(self, name: str) -> _Component | None:
        """A named component of GANSpace; None where there is none. Raises WeightsError where its files are damaged."""
        for folder in self._folders:
            configs, pca = folder / _CONFIGS, folder / _PCA
            if not configs.is_file() or not pca.is_file():
                continue
            try:
                with configs.open(encoding="utf-8", newline="") as file:
                    rows = {row[0]: row[1:4] for row in csv.reader(file, delimiter="\t") if len(row) >= 4}
                if (row := rows.get(name.removeprefix("gan_space/"))) is None:
                    continue
                index, start, stop = map(int, row)
                mean, components, deviations = (
                    open_weights(pca).tensors[key].float() for key in ("mean", "comp", "std")
                )
                width = LATENT[1]
                along = components[index].reshape(width)
                return _Component(mean.reshape(width), along, deviations[index], start, stop)
            except (KeyError, ValueError, IndexError, RuntimeError, csv.Error) as error:
                raise WeightsError(
                    f"{folder / 'gan_space'} holds no components of GANSpace ({error})", _SOURCE
                ) from error
        return None


@dataclass(frozen=True)
class _Component:
    """A principal component of StyleGAN's space and the layers that it moves.

    Attributes:
        mean, along: [512]; deviation: of latents along it.
    """

    mean: Tensor
    along: Tensor
    deviation: Tensor
    start: int
    stop: int

    def move_to(self, latent: Tensor, amount: float) -> Tensor:
        """A latent [18, 512], its layers moved as far as brings the first one's coordinate to ``amount``."""
        coordinate = (latent[0] - self.mean) @ self.along / self.deviation
        moved = latent.clone()
        moved[self.start : self.stop] += (amount - coordinate) * self.deviation * self.along
        return moved


def _direction(path: Path) -> Tensor:
    """[18, 512]: one direction for all layers (InterFaceGAN), or one a layer of which the first eight count.

    Raises:
        WeightsError: the file is damaged or holds something else.
    """
    arrays = read_arrays(path)
    shape = tuple(arrays[0].shape) if len(arrays) == 1 else ()
    if shape in {(LATENT[1],), (1, LATENT[1])}:
        return arrays[0].float().reshape(1, -1).expand(LATENT)
    if shape not in {LATENT, (1, *LATENT)}:
        raise WeightsError(f"{path.name} is no direction among latents", _SOURCE)
    direction = arrays[0].float().reshape(LATENT).clone()
    direction[_EARLY:] = 0
    return direction
