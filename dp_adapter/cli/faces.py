"""``dp-adapter faces``: what is in this photo, and how good is it as a reference?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dp_adapter.identity.faces.face import Face
    from dp_adapter.identity.faces.face_quality import Quality
    from dp_adapter.identity.pictures.picture_files import Picture


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``faces`` to the command line."""
    parser = subparsers.add_parser("faces", help="what is in this photo?", description=__doc__)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write an annotated picture of each photo here")
    parser.add_argument("--parts", action="store_true", help="tint the parts of the first face")
    parser.add_argument("--json", action="store_true", help="one JSON object per photo")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0, or 1 when a photo shows no face.

    Raises:
        PictureError: a photo cannot be read.
    """
    return max(_show(path, args) for path in args.photos)


def _show(path: Path, args: argparse.Namespace) -> int:
    from dp_adapter.identity.faces.detector import YuNet
    from dp_adapter.identity.faces.face_quality import quality
    from dp_adapter.identity.pictures.picture_files import load_picture

    picture = load_picture(path)
    faces = sorted(YuNet().detect(picture), key=lambda face: float(face.centre[0]))
    qualities = [quality(picture, face) for face in faces]
    target = _write_annotated(picture, faces, qualities, path, args) if args.out else None
    if args.json:
        found = [
            {"box": [round(x, 1) for x in face.box.tolist()], "score": round(face.score, 3), **vars(measured)}
            for face, measured in zip(faces, qualities, strict=True)
        ]
        facts = {"photo": path.name, "size": list(picture.shape[1::-1]), "faces": found}
        print(json.dumps(facts | ({"annotated": str(target)} if target else {})))
    else:
        print(f"{path.name}: {picture.shape[1]}x{picture.shape[0]}, {len(faces)} face(s), numbered from the left")
        for number, (face, measured) in enumerate(zip(faces, qualities, strict=True)):
            print(
                f"  {number}: {measured.face_px:.0f} px, score {face.score:.2f}, quality {measured.score:.2f}, "
                f"sharpness {measured.sharpness:.0f}, turned {measured.yaw:+.0f}/{measured.pitch:+.0f} degrees"
            )
            for warning in measured.warnings():
                print(f"     {warning}")
        if target:
            print(f"  -> {target}")
    return 0 if faces else 1


def _write_annotated(
    picture: Picture, faces: list[Face], qualities: list[Quality], path: Path, args: argparse.Namespace
) -> Path:
    from PIL import Image

    from dp_adapter.identity.faces.face_parsing import SelfieParser
    from dp_adapter.identity.pictures.draw_faces import annotate

    parts = SelfieParser().parse(picture, faces[0]) if args.parts and faces else None
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / f"{path.stem}_faces.png"
    Image.fromarray(annotate(picture, faces, qualities, parts)).save(target)
    return target
