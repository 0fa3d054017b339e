"""What the vectors of saved identities look like, by their names: kind of numbers, dimensions and range.

The one place where a file's vectors are held against what its encoders make; see ``FaceView`` for the names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIZES = r"(?P<width>\d{1,5})x\d{1,5}x(?P<last>\d{1,5})"
_LARGEST = 1e7  # far above what an encoder makes, and far below where squares and sums overflow
_SMALLEST = 1e-6  # below it the length of a vector may vanish
_MOST = 65536  # of a dimension that its name does not tell


@dataclass(frozen=True)
class VectorForm:
    """Vectors with names of one pattern.

    Attributes:
        sizes: of the dimensions: a number, a group of the name, or empty for any.
        half: whether half precision is possible; also zeros alone, of a face none of whose parts shows.
    """

    name: re.Pattern[str]
    sizes: tuple[int | str, ...]
    half: bool = False


def _form(name: str, *sizes: int | str, half: bool = False) -> VectorForm:
    return VectorForm(re.compile(name, re.ASCII), sizes, half)


_FORMS = (
    _form(r"sface", 128),
    _form(r"arcface/[\w.-]+/raw", 512),
    _form(rf"clip/{_SIZES}/(face|photo)/embeds", "last"),
    _form(rf"clip/{_SIZES}/(face|photo|person|parsed)/hidden", "", "width"),
    _form(rf"clip/{_SIZES}/parts/hidden", 5, "", "width", half=True),
    _form(rf"transface/{_SIZES}/patches", "last", "width"),
    _form(rf"eva/{_SIZES}/face/pooled", "last"),
    _form(rf"eva/{_SIZES}/face/hidden", 5, "", "width", half=True),
    _form(r"photomaker/[0-9a-f]+/ids", "", ""),
    _form(rf"zeros\.clip/{_SIZES}", "", "width"),
)


def is_large(name: str) -> bool:
    """Whether vectors of this name are kept in half precision: 12 MB a photo of EVA-CLIP, 7 of CLIP's parts."""
    return any(form.half and form.name.fullmatch(name) for form in _FORMS)


def is_known(name: str) -> bool:
    """Whether this version knows what the vectors of this name are of; those of later ones are left out."""
    return any(form.name.fullmatch(name) for form in _FORMS)


def require_form(name: str, dtype: str, shape: Sequence[int]) -> None:
    """Checks kind and dimensions of a vector before it is read, if its name is known.

    Args:
        dtype: as safetensors names it; shape: of the vector.

    Raises:
        ValueError: what is wrong, with the encoder's name.
    """
    for form in _FORMS:
        if match := form.name.fullmatch(name):
            wanted = [size if isinstance(size, int) else int(match[size]) if size else None for size in form.sizes]
            fits = len(shape) == len(wanted) and all(
                1 <= size <= _MOST and ask in (None, size) for size, ask in zip(shape, wanted, strict=True)
            )
            if not fits:
                asked = ", ".join("any" if size is None else str(size) for size in wanted)
                raise ValueError(f"its vector {name} has the shape {list(shape)}, not [{asked}]")
            if dtype not in ({"F32", "F16"} if form.half else {"F32"}):
                raise ValueError(f"its vector {name} is of {dtype}, not of finite 32-bit numbers")


def require_numbers(name: str, values: NDArray[Any]) -> None:
    """Checks the numbers of a vector. Raises ValueError as `require_form`."""
    # Both ends are NaN where any value is. Zeros alone are what is kept of a face of which no part shows.
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"its vector {name} is not of finite 32-bit numbers")
    size = max(-low, high)
    if size > _LARGEST:
        raise ValueError(f"its vector {name} holds {size:.3g}; encoders make no numbers above {_LARGEST:.0e}")
    if size < _SMALLEST and not is_large(name):
        raise ValueError(f"its vector {name} is nothing but zeros")
