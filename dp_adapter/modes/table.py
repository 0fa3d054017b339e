"""The modes that come with DP-Adapter (method.md, "Edit modes"): the paper's applications, our numbers and words."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dp_adapter.modes.mode import Mode, ModeWords
from dp_adapter.settings import Parts

_TEXT_AROUND = Parts(hair=0.0, neck=0.0, clothes=0.0, background=0.0)


def _ages(low: int, high: int, words: str, against: str, texture: str = "") -> tuple[ModeWords, ...]:
    """Words for target ages: the coarse ones from the first step on, texture when the face has its shape."""
    found = [ModeWords(words, min_age=low, max_age=high), ModeWords(against, negative=True, min_age=low, max_age=high)]
    if texture:
        found.append(ModeWords(texture, start=0.2, min_age=low, max_age=high))
    return tuple(found)


TABLE: Mapping[str, Mode] = MappingProxyType(
    {
        "portrait": Mode(title="Portrait", does="The face follows the photo, the rest follows the prompt."),
        "full_body": Mode(
            title="Headshot to full body",
            does="Only the face follows the photo, and only once the prompt has laid out the whole figure.",
            start=0.3,
            parts=_TEXT_AROUND,
            words=(
                ModeWords("full body"),
                ModeWords("wide shot, head to toe, feet visible", end=0.6),  # framing is settled in the coarse stages
                ModeWords("close-up, headshot, cropped, out of frame", negative=True),
            ),
            face_pass=True,
        ),
        "age": Mode(
            title="Age",
            does="The person at another age: the further away it is, the more skin and brows follow the prompt.",
            start=0.1,
            parts=Parts(skin=0.65, brows=0.65, hair=0.0),
            far_parts=Parts(skin=0.5, brows=0.5, hair=0.0),
            needs=("target_age",),
            words=(
                ModeWords("{target_age} years old", min_age=1),
                *_ages(0, 0, "newborn baby", "adult, wrinkles, beard, makeup"),
                *_ages(1, 3, "toddler", "adult, wrinkles, beard, makeup", "smooth soft skin, round cheeks"),
                *_ages(4, 12, "child", "adult, wrinkles, beard, makeup", "smooth skin, round cheeks"),
                *_ages(13, 17, "teenager", "wrinkles, grey hair", "smooth skin"),
                *_ages(18, 29, "young adult", "wrinkles, grey hair, child", "smooth skin"),
                *_ages(30, 44, "adult", "child, elderly"),
                *_ages(45, 59, "middle-aged", "child, young", "fine wrinkles, crow's feet"),
                *_ages(60, 74, "elderly, grey hair", "child, young, smooth skin", "wrinkles, lined face"),
                *_ages(75, 120, "very old, white hair", "child, young, smooth skin", "deep wrinkles, age spots"),
            ),
        ),
        "old_photo": Mode(
            title="Old photo to reality",
            does="A colour photograph of the person in an old photo, which is neutralised, cleaned and restored first.",
            weight=1.125,  # 0.9 at the usual weight of 0.8
            start=0.1,
            structure=0.3,
            parts=_TEXT_AROUND,
            words=(
                ModeWords("color photo, natural skin tones"),
                ModeWords("sharp focus, detailed skin", start=0.3),
                ModeWords(
                    "sepia, monochrome, black and white, film grain, scratches, faded, vintage photo", negative=True
                ),
                ModeWords("blurry", negative=True, start=0.3),
            ),
            retouch=True,
            restore=True,
        ),
        "expression": Mode(
            title="Expression",
            does="Mouth, eyes and brows follow the prompt's expression, the rest of the face the photo.",
            start=0.2,
            parts=Parts(mouth=0.6, eyes=0.6, brows=0.6),
            needs=("expression",),
            words=(ModeWords("{expression}"), ModeWords("{against}", negative=True)),
        ),
        "inpaint": Mode(
            title="Personalised inpainting",
            does="The identity fills exactly what is painted anew: its region is the inpaint mask.",
            start=0.0,
            gate=1.0,
        ),
    }
)
