"""``python -m dp_adapter.demo``: writes the demo page."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dp_adapter.demo import arms, page, tiny_base
from dp_adapter.errors import DPAdapterError
from dp_adapter.hosts import pipelines
from dp_adapter.hosts.pipelines import Job
from dp_adapter.identity.draw import annotate
from dp_adapter.identity.face import choose
from dp_adapter.identity.pictures import Picture, load_picture
from dp_adapter.identity.quality import quality
from dp_adapter.session import Session
from dp_adapter.settings import Settings

PROMPT = "a watercolor portrait in a garden"
SIDE = 512
STEPS = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dp_adapter.demo", description=__doc__)
    parser.add_argument(
        "--photo", type=Path, help="a portrait; default: scikit-image's astronaut (NASA, public domain)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    try:
        make(args.photo, args.out, args.prompt, args.steps)
    except DPAdapterError as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    return 0


def make(photo: Path | None, out: Path, prompt: str, steps: int) -> Path:
    """Writes ``index.html`` and everything that it needs into a folder.

    Raises:
        DPAdapterError: the photo cannot be read, or shows no face.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    reference = out / "reference.png"
    picture = load_picture(astronaut() if photo is None else photo)
    _save(picture, reference)
    (out / "models" / "dp_adapter").mkdir(parents=True, exist_ok=True)
    with pipelines.quiet():
        base = tiny_base.build(out / "base")
        tiny_base.identity_adapter(out / "models" / "dp_adapter" / "untrained.safetensors", base)

    session = Session([out / "models"], paths_allowed=True)
    pipeline = pipelines.load(base, device="cpu", dtype="float32")
    settings = Settings.from_dict({"references": [{"image": str(reference)}], "weight": 1.0})
    shown, facts, portrait, box = _look(session, picture)
    common: dict[str, Any] = {"prompt": prompt, "width": SIDE, "height": SIDE, "steps": steps, "seed": 7}
    in_box = settings.with_field("regions", [{"kind": "box", "box": box, "feather": 0.05}])
    from_photo = Job(**common, sampler="ddim", init=portrait, strength=0.4)
    experiments = [
        arms.run("From the photo (img2img): the face that was found", session, pipeline, settings, from_photo, _say),
        arms.run("From noise (txt2img): a box", session, pipeline, in_box, Job(**common, sampler="ddim"), _say),
    ]
    target = out / "index.html"
    page.write(target, picture, shown, facts, experiments)
    sys.stderr.write(f"\r{' ' * 60}\r")
    print(f"{target} ({time.perf_counter() - started:.0f} s)")  # noqa: T201 - the command's result
    return target


def astronaut() -> Picture:
    """Eileen Collins, 1999; a NASA portrait in the public domain, from scikit-image."""
    from skimage import data

    return np.asarray(data.astronaut(), np.uint8)


def _look(session: Session, picture: Picture) -> tuple[Picture, list[str], Picture, dict[str, float]]:
    """What is shown of the reference; its head and shoulders as a square; and where the face is in it, in fractions."""
    faces = session.photos.faces(picture, session.encoders.yunet)
    face = choose(faces)
    measured = quality(picture, face)
    parts = session.encoders.parser.parse(picture, face)
    inner = {name: parts[name] for name in ("face", "hair", "clothes", "eyes", "brows", "nose", "mouth")}
    facts = [
        f"{len(faces)} face(s); the largest is {measured.face_px:.0f} px wide, score {face.score:.2f}.",
        f"Quality {measured.score:.2f}: sharpness {measured.sharpness:.0f}, turned {measured.yaw:+.0f} degrees.",
        *measured.warnings(),
    ]
    side = min(3.2 * face.size, *picture.shape[:2])
    left, top = (
        float(np.clip(centre - side / 2, 0, length - side))
        for centre, length in zip(face.centre, picture.shape[1::-1], strict=True)
    )
    x0, y0, x1, y1 = ((face.box - np.array([left, top, left, top])) / side).clip(0, 1).tolist()
    square = _cropped(picture, left, top, side)
    return annotate(picture, faces, None, inner), facts, square, {"x0": x0, "y0": y0, "x1": x1, "y1": y1}


def _cropped(picture: Picture, left: float, top: float, side: float) -> Picture:
    from PIL import Image

    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS, box), np.uint8)


def _save(picture: Picture, path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path)


def _say(name: str, done: int, total: int) -> None:
    sys.stderr.write(f"\r{name}: step {done} of {total}{' ' * 20}")


if __name__ == "__main__":
    sys.exit(main())
