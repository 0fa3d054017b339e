"""The .safetensors file of a saved identity, read with distrust: such files are passed around.

Tensors: ``thumbnail`` (a PNG file's bytes), ``photos.N.DETECTOR.VECTOR``, ``zeros.TOWER``.
Metadata: format, version, name at saving, created, as JSON the photos and the encoders' versions, and a digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dp_adapter import __version__, naming
from dp_adapter.errors import IdentityError
from dp_adapter.identity.faces.face import Floats
from dp_adapter.identity.faces.face_quality import Quality
from dp_adapter.identity.saved.saved_identity import FaceView, IdentityHeader, SavedIdentity, SavedPhoto

FORMAT = "dp-adapter identity"
VERSION = 1
SUFFIX = ".safetensors"
MAX_BYTES = 512 * 2**20
MAX_PHOTOS = 32
MAX_THUMBNAIL = 2**20
_PNG = b"\x89PNG\r\n\x1a\n"
_DAMAGED = "Save the identity again from its photos, or restore the file from a backup."
# What crafted metadata can raise while it is taken apart.
_MALFORMED = (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError, OverflowError)


def write(identity: SavedIdentity, path: Path) -> None:
    """Writes the file; ``identity.digest`` is not read but computed.

    Raises:
        IdentityError: too many photos, or so many vectors that it could not be read back.
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = _tensors(identity)
    size = sum(value.nbytes for value in tensors.values())
    if len(identity.photos) > MAX_PHOTOS or size > MAX_BYTES - 2**20:
        raise IdentityError(
            f"'{identity.name}' would have {len(identity.photos)} photos and {size / 2**20:.0f} MiB; at most "
            f"{MAX_PHOTOS} and {MAX_BYTES / 2**20:.0f} are possible",
            "Save fewer photos.",
        )
    photos = json.dumps([_facts(photo) for photo in identity.photos])
    encoders = json.dumps(dict(identity.encoders), sort_keys=True)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "dp_adapter": __version__,
        "name": identity.name,
        "created": identity.created,
        "photos": photos,
        "encoders": encoders,
        "digest": content_digest(photos, encoders, tensors),
    }
    try:
        save_file(tensors, str(path), metadata)
    except SafetensorError as error:  # how the library says that the disk is full
        raise OSError(f"{path.name} cannot be written: {error}") from error


def read_header(path: Path) -> IdentityHeader:
    """Head and thumbnail of a file. Raises as `read`, but does not compare the content with its digest."""
    metadata, tensors = _contents(path, everything=False)
    try:
        return _header(path, metadata, tensors)
    except _MALFORMED as error:
        raise _damage_error(path, error) from error


def read(path: Path) -> SavedIdentity:
    """The whole identity.

    Raises:
        IdentityError: gone, too large, damaged, of another kind, or of a newer version.
    """
    metadata, tensors = _contents(path, everything=True)
    try:
        header = _header(path, metadata, tensors)
        if content_digest(metadata["photos"], metadata["encoders"], tensors) != header.digest:
            raise ValueError("its content is not what was saved")
        photos = _photos(json.loads(metadata["photos"]), tensors)
        zeros = {key[6:]: _numbers(value) for key, value in tensors.items() if key.startswith("zeros.")}
    except _MALFORMED as error:
        raise _damage_error(path, error) from error
    return SavedIdentity(**vars(header), photos=photos, zeros=MappingProxyType(zeros))


def content_digest(photos: str, encoders: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over the JSON of photos and encoders and all tensors, as hex."""
    sha = hashlib.sha256(f"{photos}\n{encoders}\n".encode())
    for key in sorted(tensors):
        value = np.ascontiguousarray(tensors[key])
        sha.update(f"{key} {value.dtype} {value.shape}\n".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()


def _tensors(identity: SavedIdentity) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {"thumbnail": np.frombuffer(identity.thumbnail, np.uint8)}
    tensors |= {f"zeros.{tower}": np.ascontiguousarray(value) for tower, value in identity.zeros.items()}
    for number, photo in enumerate(identity.photos):
        for detector, view in photo.views.items():
            for name, vector in view.vectors.items():
                tensors[f"photos.{number}.{detector}.{name}"] = _to_stored(name, vector)
    return tensors


def _to_stored(name: str, vector: Floats) -> NDArray[Any]:
    """A vector as it lies in the file, the largest in half precision: 12 MB a photo of EVA-CLIP, 7 of CLIP's parts."""
    half = _large(name) and np.abs(vector).max() < np.finfo(np.float16).max
    return np.ascontiguousarray(vector, np.float16 if half else np.float32)


def _large(name: str) -> bool:
    return name.endswith("/hidden") and (name.startswith("eva/") or name.endswith("/parts/hidden"))


def _facts(photo: SavedPhoto) -> dict[str, Any]:
    views = {
        name: {"faces": view.faces, "chosen": view.chosen, "box": list(view.box), "quality": asdict(view.quality)}
        for name, view in photo.views.items()
    }
    return {"digest": photo.digest, "weight": photo.weight, "views": views}


def _contents(path: Path, everything: bool) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Metadata and tensors of a file of this format; only the thumbnail of them unless everything is asked for."""
    from safetensors import SafetensorError, safe_open

    try:
        _require_readable(path)
        with safe_open(str(path), framework="np") as file:
            metadata = dict(file.metadata() or {})
            _require_identity(path, metadata)
            keys = file.keys() if everything else ["thumbnail"]
            return metadata, {key: cast("NDArray[Any]", file.get_tensor(key)) for key in keys}
    except (SafetensorError, OSError, *_MALFORMED) as error:
        raise _damage_error(path, error) from error


def _require_readable(path: Path) -> None:
    """Refuses what the safetensors library would call damaged, or read for long."""
    try:
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        problem = f"The saved identity {path.name} cannot be read ({error.strerror or error})"
        raise IdentityError(problem, "Check the file and its permissions.") from error
    if size > MAX_BYTES:
        raise IdentityError(
            f"{path.name} has {size / 2**20:.0f} MiB; saved identities have at most {MAX_BYTES / 2**20:.0f}",
            "It is another kind of file: move it out of the identities folder.",
        )


def _require_identity(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise IdentityError(
            f"{path.name} is not a saved identity of DP-Adapter",
            "Move it out of the identities folder; adapters belong into the models folder above it.",
        )
    if metadata.get("version") != str(VERSION):
        raise IdentityError(
            f"{path.name} has version {metadata.get('version', '')[:20]!r} of the format, this DP-Adapter reads "
            f"{VERSION}",
            "Update DP-Adapter.",
        )


def _header(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> IdentityHeader:
    picture = tensors["thumbnail"]
    thumbnail = picture.tobytes()
    if picture.dtype != np.uint8 or len(thumbnail) > MAX_THUMBNAIL or not thumbnail.startswith(_PNG):
        raise ValueError("its thumbnail is no small PNG")
    encoders = {str(name): str(version) for name, version in json.loads(metadata["encoders"]).items()}
    hashes = tuple(_hash(photo["digest"]) for photo in json.loads(metadata["photos"]))
    if not 1 <= len(hashes) <= MAX_PHOTOS:
        raise ValueError(f"it has {len(hashes)} photos")
    digest = _hash(metadata["digest"])
    return IdentityHeader(path.stem, metadata["created"][:40], digest, thumbnail, MappingProxyType(encoders), hashes)


def _photos(listed: list[dict[str, Any]], tensors: Mapping[str, NDArray[Any]]) -> tuple[SavedPhoto, ...]:
    vectors: dict[tuple[int, str], dict[str, Floats]] = {}
    for key in tensors:
        if key.startswith("photos."):
            _, number, detector, name = key.split(".", 3)
            vectors.setdefault((int(number), detector), {})[name] = _numbers(tensors[key], _large(name))
    photos: list[SavedPhoto] = []
    for number, facts in enumerate(listed):
        weight = float(facts["weight"])
        if not 0 < weight < 1e6:
            raise ValueError(f"{naming.photo(number)} has the weight {weight}")
        views = {name: _view(view, vectors[number, name]) for name, view in facts["views"].items()}
        photos.append(SavedPhoto(_hash(facts["digest"]), weight, MappingProxyType(views)))
    if len({_layout(photo) for photo in photos}) != 1 or not photos[0].views:
        raise ValueError("its photos do not have the same vectors")
    return tuple(photos)


def _view(facts: dict[str, Any], vectors: Mapping[str, Floats]) -> FaceView:
    x1, y1, x2, y2 = (float(x) for x in facts["box"])
    quality = Quality(**{name: float(value) for name, value in facts["quality"].items()})
    if not np.isfinite([x1, y1, x2, y2, *vars(quality).values()]).all():
        raise ValueError("it holds NaN or infinite values")
    return FaceView(
        int(facts["faces"]), int(facts["chosen"]), (x1, y1, x2, y2), quality, MappingProxyType(dict(vectors))
    )


def _layout(photo: SavedPhoto) -> frozenset[tuple[str, str, tuple[int, ...]]]:
    return frozenset(
        (detector, name, vector.shape)
        for detector, view in photo.views.items()
        for name, vector in view.vectors.items()
    )


def _numbers(value: NDArray[Any], large: bool = False) -> Floats:
    kinds = {("float32", 3), ("float16", 3)} if large else {("float32", 1), ("float32", 2)}
    # Zeros alone are no vector, but what is kept of a face none of whose parts shows.
    nothing = not large and not value.any()
    if (value.dtype.name, value.ndim) not in kinds or not np.isfinite(value).all() or nothing:
        raise ValueError("a vector is not of finite 32-bit numbers")
    return value.astype(np.float32, copy=False)


def _hash(text: object) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("a digest is not 64 hex digits")
    return text


def _damage_error(path: Path, error: Exception) -> IdentityError:
    return IdentityError(f"The saved identity {path.name} is damaged ({str(error)[:120]})", _DAMAGED)
