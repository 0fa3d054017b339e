"""Portraits put into scenes, and what x̂0 looks like while such a scene forms: for benchmarks/regions.py and tools/.

Everything follows from the generator that is passed in. Pictures are RGB in 0..1 unless they are said to be uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.faces.multiscale_detection import iou
from dp_adapter.identity.pictures.picture_files import Picture

Random = np.random.Generator
HIDDEN = 0.1  # the most of a face that a later portrait may cover


@dataclass(frozen=True, eq=False)
class CutOut:
    """One person to put into scenes.

    Attributes:
        picture: uint8 [h, w, 3].
        person: share of the person, hair and clothes included, in each pixel, [h, w].
        face: share of the face, [h, w].
        box: x1, y1, x2, y2 of the face in px.
        points: the five points in px, [5, 2].
    """

    picture: Picture
    person: Floats
    face: Floats
    box: Floats
    points: Floats


@dataclass(frozen=True, eq=False)
class PlacedFace:
    """A face in a scene, in px of the scene: box [4], points [5, 2], and its visible region [H, W]."""

    box: Floats
    points: Floats
    face: Floats


def compose_scene(
    random: Random, portraits: Sequence[CutOut], heights: Sequence[float], behind: Floats
) -> tuple[Floats, list[PlacedFace]]:
    """A picture [side, side, 3] with portraits before `behind`, their faces of the given heights in fractions of it.

    Portraits that find no free place, or would cover a face, are left out. Half are cut out, half keep their
    own background.
    """
    picture, side = behind, behind.shape[0]
    placed: list[PlacedFace] = []
    for portrait, height in sorted(zip(portraits, heights, strict=True), key=lambda pair: -pair[1]):
        warp = _find_warp(random, portrait, height * side, side, placed)
        if warp is None:
            continue
        cut = portrait.person if random.random() < 0.5 else np.ones_like(portrait.person)
        share = _warp(cut, warp, side)
        if any(float((share * other.face).sum()) > HIDDEN * float(other.face.sum()) for other in placed):
            continue
        source = _retone(random, portrait.picture.astype(np.float32) / np.float32(255))
        picture = picture + share[..., None] * (_warp(source, warp, side) - picture)
        placed = [PlacedFace(other.box, other.points, other.face * (1 - share)) for other in placed]
        placed.append(_place_face(portrait, warp, side))
    return picture.clip(0, 1).astype(np.float32), placed


def _place_face(portrait: CutOut, warp: Floats, side: int) -> PlacedFace:
    corners = _move(portrait.box.reshape(2, 2), warp)
    points = _move(portrait.points, warp)
    if warp[0, 0] < 0:  # mirrored: left and right change their names
        points = points[[1, 0, 2, 4, 3]]
    box = np.concatenate([corners.min(0), corners.max(0)])
    return PlacedFace(box, points, _warp(portrait.face, warp, side))


def _find_warp(
    random: Random, portrait: CutOut, height: float, side: int, placed: Sequence[PlacedFace]
) -> Floats | None:
    """An affine map [2, 3] that puts the face, `height` px tall, wholly into the picture and clear of the others."""
    x1, y1, x2, y2 = portrait.box.tolist()
    scale = height / (y2 - y1)
    half = np.array([(x2 - x1), (y2 - y1)], np.float32) * scale / 2
    for _ in range(20):
        centre = np.array([random.uniform(h, side - h) if 2 * h < side else side / 2 for h in half], np.float32)
        box = np.concatenate([centre - half, centre + half])
        wide = np.concatenate([centre - 1.5 * half, centre + 1.5 * half]).astype(np.float32)
        if all(iou(wide, other.box) == 0 for other in placed):
            flip = -1.0 if random.random() < 0.5 else 1.0
            matrix = scale * np.array([[flip, 0], [0, 1]]) @ _turn(random.normal(0, 6))
            middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
            return np.hstack([matrix, (np.asarray(box).reshape(2, 2).mean(0) - matrix @ middle)[:, None]]).astype(
                np.float32
            )
    return None


def _turn(degrees: float) -> Floats:
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)


def _warp(image: Floats, warp: Floats, side: int) -> Floats:
    smooth = cv2.INTER_AREA if abs(float(np.linalg.det(warp[:, :2]))) < 0.25 else cv2.INTER_LINEAR
    if smooth == cv2.INTER_AREA:  # warpAffine does not average
        shrink = float(abs(np.linalg.det(warp[:, :2]))) ** 0.5 * 1.5
        size = max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink))
        factors = np.array([image.shape[1] / size[0], image.shape[0] / size[1]], np.float32)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32)
        warp = np.hstack([warp[:, :2] * factors, warp[:, 2:]])
    return np.asarray(cv2.warpAffine(image, warp, (side, side), flags=cv2.INTER_LINEAR), np.float32)


def _move(points: Floats, warp: Floats) -> Floats:
    return (points @ np.transpose(warp[:, :2]) + warp[:, 2]).astype(np.float32)


def _retone(random: Random, picture: Floats) -> Floats:
    """The portrait under another light: gain per channel, gamma, sometimes grey."""
    if random.random() < 0.1:
        picture = np.repeat(picture.mean(-1, keepdims=True), 3, -1)
    gamma = float(np.exp(random.normal(0, 0.15)))
    return (picture**gamma * np.exp(random.normal(0, 0.08, 3)).astype(np.float32)).clip(0, 1).astype(np.float32)


def draw_behind(random: Random, side: int) -> Floats:
    """A face-free picture [side, side, 3]: a gradient, clouds of 1/f noise, shapes that heads could be taken for."""
    steps = np.linspace(0, 1, side, dtype=np.float32)
    colours = random.random((4, 3)).astype(np.float32)
    picture = np.asarray(cv2.resize(colours.reshape(2, 2, 3), (side, side), interpolation=cv2.INTER_LINEAR), np.float32)
    strength = random.choice([0.0, 0.1, 0.25])
    tint = random.random(3).astype(np.float32)
    picture = picture + strength * draw_clouds(random, side, random.uniform(0.7, 1.6))[..., None] * tint
    for _ in range(int(random.integers(0, 14))):
        _draw_shape(random, picture)
    if random.random() < 0.3:
        waves = np.sin(steps * random.uniform(10, 120) + random.uniform(0, 6))
        picture = picture + 0.1 * (waves[None, :, None] if random.random() < 0.5 else waves[:, None, None])
    return picture.clip(0, 1).astype(np.float32)


def _draw_shape(random: Random, picture: Floats) -> None:
    """Draws an ellipse, a box or a line; some in colours of skin, with a darker cap as hair would be."""
    side = picture.shape[0]
    skin = random.random() < 0.4
    colour = (np.array([0.85, 0.62, 0.5]) * random.uniform(0.3, 1.1) if skin else random.random(3)).clip(0, 1).tolist()
    at = tuple(int(value) for value in random.integers(0, side, 2))
    size = int(random.uniform(0.03, 0.25) * side) + 1, int(random.uniform(0.03, 0.25) * side) + 1
    kind = random.integers(0, 3)
    if kind == 0:
        cv2.ellipse(picture, at, size, float(random.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
        if skin and random.random() < 0.5:
            cv2.ellipse(picture, at, size, 0, 180, 360, random.uniform(0, 0.4, 3).tolist(), -1, cv2.LINE_AA)
    elif kind == 1:
        cv2.rectangle(picture, at, (at[0] + size[0], at[1] + 2 * size[1]), colour, -1, cv2.LINE_AA)
    else:
        end = tuple(int(value) for value in random.integers(0, side, 2))
        cv2.line(picture, at, end, colour, max(1, size[0] // 6), cv2.LINE_AA)


def frequencies(side: int) -> Floats:
    """Cycles per picture of each coefficient of a real 2-D Fourier transform, [side, side // 2 + 1], at least 1."""
    down, across = np.fft.fftfreq(side, 1 / side), np.fft.rfftfreq(side, 1 / side)
    return np.maximum(1, np.hypot(down[:, None], across[None, :])).astype(np.float32)


def draw_clouds(random: Random, side: int, power: float) -> Floats:
    """Noise [side, side] with amplitudes falling as frequency to `power`, standard deviation 1."""
    spectrum = np.fft.rfft2(random.standard_normal((side, side))) / frequencies(side) ** power
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (side, side))
    return (field / max(float(field.std()), 1e-6)).astype(np.float32)


def pixel_noise(random: Random, picture: Floats, level: float) -> Floats:
    """Gaussian noise of standard deviation `level` on every pixel."""
    return picture + random.normal(0, level, picture.shape).astype(np.float32)


def cell_noise(random: Random, picture: Floats, level: float, nearest: bool = False) -> Floats:
    """Noise of standard deviation `level` in cells of 8 px, as an error in the latent has."""
    side = picture.shape[0]
    grid = random.normal(0, level, (side // 8, side // 8, 3)).astype(np.float32)
    smooth = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return picture + np.asarray(cv2.resize(grid, (side, side), interpolation=smooth), np.float32)


def block_noise(random: Random, picture: Floats, level: float) -> Floats:
    """`cell_noise` without interpolation."""
    return cell_noise(random, picture, level, nearest=True)


def blur(random: Random, picture: Floats, level: float) -> Floats:
    """A posterior mean: blur of `level` in 20ths of the side, with a third as much noise in cells as `cell_noise`."""
    smooth = np.asarray(cv2.GaussianBlur(picture, (0, 0), max(level * picture.shape[0] / 20, 0.3)), np.float32)
    return cell_noise(random, smooth, level / 3)


def sigma(progress: float) -> float:
    """Stable Diffusion's noise over signal at a moment of a run, scaled-linear betas."""
    betas = np.square(np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64))
    kept = float(np.cumprod(1 - betas)[round(999 * (1 - progress))])
    return ((1 - kept) / kept) ** 0.5


def wiener(random: Random, picture: Floats, progress: float, cell: int = 1) -> Floats:
    """The best linear estimate of the picture from its diffused self, for a prior that falls as 1/f².

    Args:
        progress: moment of the run, which sets the noise.
        cell: diffused at a resolution reduced so many times; 8 is the latent's.
    """
    side = picture.shape[0] // cell
    small = np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.float32)
    mean = small.mean((0, 1), keepdims=True)
    spread = max(float(small.std()), 1e-3)
    noise = sigma(progress)
    noisy = (small - mean) / spread + random.normal(0, noise, small.shape).astype(np.float32)
    prior = 1 / np.square(_full(side))
    prior *= side * side / prior.sum()
    shrink = (prior / (prior + noise**2))[..., None]
    estimate = np.fft.ifft2(np.fft.fft2(noisy, axes=(0, 1)) * shrink, axes=(0, 1)).real.astype(np.float32)
    whole = np.asarray(estimate * np.float32(spread) + mean, np.float32)
    large = cv2.resize(whole, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(large, np.float32)


def _full(side: int) -> Floats:
    at = np.fft.fftfreq(side, 1 / side)
    return np.maximum(1, np.hypot(at[:, None], at[None, :])).astype(np.float32)


def latent_wiener(random: Random, picture: Floats, progress: float) -> Floats:
    """`wiener` at the latent's resolution."""
    return wiener(random, picture, progress, 8)


Noise = Callable[[Random, Floats, float], Floats]


def to_picture(values: Floats) -> Picture:
    """0..1 -> uint8."""
    return (values.clip(0, 1) * 255).round().astype(np.uint8)
