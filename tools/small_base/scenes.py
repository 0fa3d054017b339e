"""Scenes composed by machine, so that every word of their captions is true and can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from dp_adapter.identity.faces.face_parsing import BACKGROUND, CLOTHES
from dp_adapter.small_base.caption_grammar import COLOURS
from tools.small_base.portraits import Bytes, Floats, Portrait

SIDE = 128

Random = np.random.Generator

PATTERNS = ("plain", "striped", "checkered", "dotted")
PLACES = {"on the left": -1, "in the centre": 0, "on the right": 1}
SIZES = {"close-up": (72, 88), "portrait": (50, 64), "full body": (26, 31)}
"""Height of the face in pixels."""

TROUSERS = ("black", "blue", "grey", "brown")


@dataclass(frozen=True)
class Person:
    """What is true of one person in a scene; None: not said, as it cannot be told."""

    portrait: int
    clothes: str
    place: str
    hair: str | None
    glasses: bool | None
    smiling: bool | None
    mirrored: bool


@dataclass(frozen=True)
class Plan:
    """What a scene shows. ``people`` from left to right."""

    size: str
    background: str
    pattern: str
    grey: bool
    people: tuple[Person, ...]


@dataclass(eq=False)
class Scene:
    """A composed scene.

    Attributes:
        picture: [S, S, 3] RGB in 0..255; labels: [S, S] of the selfie network; owner: [S, S], number of the person
            from 1, 0 on the background.
        points: five landmarks of each person [people, 5, 2], in pixels.
    """

    plan: Plan
    picture: Bytes
    labels: Bytes
    owner: Bytes
    points: list[Floats] = field(default_factory=list[Floats])


def draw_plan(random: Random, portraits: Sequence[Portrait]) -> Plan:
    """A random plan; portraits without colour are in grey scenes only."""
    size = str(random.choice(list(SIZES), p=[0.35, 0.5, 0.15]))
    count = 2 if size == "portrait" and random.random() < 0.2 else 1
    chosen = [int(i) for i in random.integers(0, len(portraits), count)]
    grey = random.random() < 0.12 or any(portraits[i].grey for i in chosen)
    places = [None] if count == 1 else ["on the left", "on the right"]
    background = str(random.choice(list(COLOURS)))
    people = [_person(random, portraits, i, place, size, background) for i, place in zip(chosen, places, strict=True)]
    return Plan(size, background, str(random.choice(PATTERNS, p=[0.55, 0.15, 0.15, 0.15])), grey, tuple(people))


def _person(
    random: Random, portraits: Sequence[Portrait], index: int, place: str | None, size: str, background: str
) -> Person:
    portrait = portraits[index]
    if place is None:
        place = "in the centre" if size == "close-up" else str(random.choice(list(PLACES)))
    clothes = str(random.choice([name for name in COLOURS if name != background]))
    facts = (portrait.hair, portrait.glasses, portrait.smiling)
    return Person(index, clothes, place, *facts, bool(random.random() < 0.5))


def compose(random: Random, plan: Plan, portraits: Sequence[Portrait]) -> Scene:
    """Paints a plan."""
    canvas = _paint_background(random, plan)
    labels, owner = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    scene = Scene(plan, np.zeros(0, np.uint8), labels, owner)
    for number, person in enumerate(plan.people, 1):
        scene.points.append(_paint(random, canvas, scene, person, portraits[person.portrait], number))
    if plan.grey:
        canvas = np.repeat(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None], 3, -1)
    scene.picture = canvas.clip(0, 255).round().astype(np.uint8)
    return scene


def write_caption(random: Random, plan: Plan, *, whole: bool = False) -> str:
    """A true sentence about a scene; a random part of the facts unless ``whole``, the medium always."""

    def said(probability: float) -> bool:
        return whole or bool(random.random() < probability)

    medium = "black and white photo" if plan.grey else "color photo"
    parts: list[str] = []
    if len(plan.people) == 2:
        head = f"{medium} of two people"
        parts += [f"one person in {p.clothes} clothes {p.place}" for p in plan.people if not plan.grey and said(0.7)]
    else:
        person = plan.people[0]
        smile = {True: "smiling ", False: "serious ", None: ""}[person.smiling] if said(0.7) else ""
        framing = {"close-up": "close-up ", "portrait": "", "full body": "full body "}[plan.size] if said(0.9) else ""
        head = f"{framing}{medium} of a {smile}person"
        if person.place != "in the centre" and said(0.85):
            head += f" {person.place}"
        if person.glasses is not None and said(0.75):
            parts.append("with glasses" if person.glasses else "without glasses")
        if person.hair and not (plan.grey and person.hair in ("brown", "blond")) and said(0.75):
            parts.append("bald" if person.hair == "no" else f"{person.hair} hair")
        if not plan.grey and said(0.8):
            parts.append(f"{person.clothes} clothes")
    if plan.grey:
        parts += [f"{plan.pattern} background"] if plan.pattern != "plain" and said(0.6) else []
    elif said(0.85):
        pattern = f"{plan.pattern} " if plan.pattern != "plain" else ""
        parts.append(f"{pattern}{plan.background} background")
    return ", ".join([head, *parts])


def _floats(values: Any) -> Floats:
    return np.array(values, np.float32)


def _colour(random: Random, name: str) -> Floats:
    return (_floats(COLOURS[name]) + random.normal(0, 7, 3).astype(np.float32)).clip(0, 255)


def _paint_background(random: Random, plan: Plan) -> Floats:
    """[S, S, 3]: the colour, in a pattern with itself, lighter or darker."""
    colour = _colour(random, plan.background)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    shade = 1 + 0.10 * ((y / SIDE - 0.5) * random.normal() + (x / SIDE - 0.5) * random.normal())
    canvas = (colour * shade[..., None]).astype(np.float32)
    if plan.pattern == "plain":
        return canvas
    period = float(random.choice([24, 32]))
    dx, dy = random.uniform(0, period, 2)
    if plan.pattern == "striped":
        along = (x if random.random() < 0.7 else y) + dx
        share = ((along / period) % 1 < 0.5).astype(np.float32)
    elif plan.pattern == "checkered":
        share = ((((x + dx) / period) % 1 < 0.5) ^ (((y + dy) / period) % 1 < 0.5)).astype(np.float32)
    else:
        u, v = ((x + dx) % period) - period / 2, ((y + dy) % period) - period / 2
        share = (np.hypot(u, v) < period * 0.3).astype(np.float32)
    other = colour * 0.45 if colour.mean() > 110 else colour + 0.5 * (255 - colour)
    share = cv2.GaussianBlur(share, (0, 0), 0.7)[..., None]
    return ((1 - share) * canvas + share * other).astype(np.float32)


def _paint(random: Random, canvas: Floats, scene: Scene, person: Person, portrait: Portrait, number: int) -> Floats:
    """Paints one person into canvas, labels and owner; returns the landmarks."""
    low, high = SIZES[scene.plan.size]
    two = len(scene.plan.people) == 2
    height = float(random.uniform(40, 46) if two else random.uniform(low, high))
    picture, labels, points, box = portrait.picture, portrait.labels, portrait.points, portrait.box
    if person.mirrored:
        picture, labels, points, box = _mirror(picture, labels, points, box)
    scale = height / float(box[3])
    shift = PLACES[person.place] * (30 if scene.plan.size != "full body" else 36) + random.normal(0, 3)
    centre = SIDE / 2 + shift
    if scene.plan.size == "full body":
        top = 5 + random.uniform(0, 5)  # of the face
    else:
        lowest = SIDE - len(picture) * scale  # the portrait must reach the lower edge
        top = max(box[1] * scale + lowest, 0) if scene.plan.size == "portrait" else SIDE * 0.52 - height / 2
        top = max(float(top + random.normal(0, 2)), float(box[1] * scale + lowest) + 0.0)
    move = _floats([[scale, 0, centre - scale * (box[0] + box[2] / 2)], [0, scale, top - scale * box[1]]])
    size = (SIDE, SIDE)
    tinted = _dress(random, picture, labels, person.clothes)
    alpha = cv2.GaussianBlur((labels != BACKGROUND).astype(np.float32), (0, 0), 1.0)
    smooth = cv2.INTER_AREA if scale > 0.9 else cv2.INTER_LINEAR
    if scale < 0.6:  # before a strong reduction, against aliasing
        tinted = cv2.GaussianBlur(tinted, (0, 0), 0.35 / scale)
    moved = cv2.warpAffine(tinted, move, size, flags=smooth, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.warpAffine(alpha, move, size, flags=cv2.INTER_LINEAR)
    moved_labels = cv2.warpAffine(labels, move, size, flags=cv2.INTER_NEAREST)
    if scene.plan.size == "full body":
        _paint_body(random, canvas, scene, person, move, len(picture), centre, number)
    cover = cover[..., None]
    canvas *= 1 - cover
    canvas += cover * moved
    inside = cover[..., 0] > 0.5
    scene.labels[inside] = np.where(moved_labels[inside] == BACKGROUND, scene.labels[inside], moved_labels[inside])
    scene.owner[inside] = number
    return points @ move[:, :2].T + move[:, 2]


def _mirror(picture: Floats, labels: Bytes, points: Floats, box: Floats) -> tuple[Floats, Bytes, Floats, Floats]:
    width = picture.shape[1]
    turned = points[[1, 0, 2, 4, 3]] * _floats([-1, 1]) + _floats([width - 1, 0])
    return (
        np.ascontiguousarray(picture[:, ::-1]),
        np.ascontiguousarray(labels[:, ::-1]),
        turned,
        _floats([width - 1 - box[0] - box[2], box[1], box[2], box[3]]),
    )


def _dress(random: Random, picture: Floats, labels: Bytes, clothes: str) -> Floats:
    """The picture with its clothes in another colour; folds stay, as differences of light."""
    mask = labels == CLOTHES
    if not mask.any():
        return picture
    light = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    relief = (0.35 * (light - float(np.median(light[mask])))).clip(-30, 40)
    share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)[..., None]
    return picture * (1 - share) + share * (_colour(random, clothes) + relief[..., None]).clip(0, 255)


def _paint_body(
    random: Random, canvas: Floats, scene: Scene, person: Person, move: Floats, rows: int, centre: float, number: int
) -> None:
    """A drawn body below the bust: arms and trunk in the colour of the clothes, legs, shoes."""
    bust = float(move[1, 1] * rows + move[1, 2])
    clothes, trousers = _colour(random, person.clothes), _colour(random, str(random.choice(TROUSERS)))
    half = float(move[0, 0]) * 78  # of the shoulders
    waist, ground = bust + 0.24 * (SIDE - bust), SIDE - 5.0
    trunk = [(-half, bust - 12), (half, bust - 12), (half * 0.75, waist + 6), (-half * 0.75, waist + 6)]
    arms = [
        [(s * half, bust - 12), (s * (half + 4), waist + 12), (s * (half - 2), waist + 12), (s * half * 0.6, bust)]
        for s in (-1, 1)
    ]
    legs = [[(s * 1.0, waist), (s * half * 0.8, waist), (s * half * 0.65, ground), (s * 3.0, ground)] for s in (-1, 1)]
    shoes = [
        [(s * 2.0, ground - 3), (s * half * 0.75, ground - 3), (s * half * 0.85, ground + 1), (s * 2.0, ground + 1)]
        for s in (-1, 1)
    ]
    for shapes, colour in ((legs, trousers), ([trunk, *arms], clothes), (shoes, _floats([25, 22, 20]))):
        for shape in shapes:
            mask = np.zeros((SIDE, SIDE), np.uint8)
            corners = (_floats(shape) + _floats([centre, 0])) * 8
            cv2.fillConvexPoly(mask, corners.round().astype(np.int32), 255, cv2.LINE_AA, shift=3)
            share = (mask / np.float32(255))[..., None]
            canvas *= 1 - share
            canvas += share * colour
            scene.labels[mask > 127] = CLOTHES
            scene.owner[mask > 127] = number
