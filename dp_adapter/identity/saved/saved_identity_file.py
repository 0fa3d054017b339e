"""The .safetensors file of a saved identity, read with distrust: such files are passed around.

Tensors: ``thumbnail`` (a PNG file's bytes), ``photos.N.DETECTOR.VECTOR``, ``zeros.TOWER``.
Metadata: format, version, name at saving, created, as JSON the photos and the encoders' versions, and a digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
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
from dp_adapter.identity.saved.saved_identity import FaceView, IdentityHeader, SavedIdentity, SavedPhoto, network_of
from dp_adapter.identity.saved.vector_forms import is_known, is_large, require_form, require_numbers
from dp_adapter.naming import first_line

FORMAT = "dp-adapter identity"
VERSION = 1
SUFFIX = ".safetensors"
MAX_BYTES = 512 * 2**20
MAX_PHOTOS = 32
MAX_THUMBNAIL = 2**20
_MOST_TEXT = 4 * 2**20  # bytes that describe a file; some 100 KB of the largest
_FARTHEST = 1e6
_THUMBNAIL, _PHOTOS, _ZEROS = "thumbnail", "photos.", "zeros."
_PNG = b"\x89PNG\r\n\x1a\n"
_DAMAGED = "Save the identity again from its photos, or restore the file from a backup."
# What crafted metadata can raise while it is taken apart.
_MALFORMED = (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError, OverflowError)


def write(identity: SavedIdentity, path: Path) -> None:
    """Writes the file; ``identity.digest`` is not read but computed.

    Raises:
        IdentityError: too many photos, so many vectors that it could not be read back, or one that is none.
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
    try:
        for key in tensors.keys() - {_THUMBNAIL}:
            require_numbers(_vector_name(key), tensors[key])
    except ValueError as error:
        problem = f"'{identity.name}' cannot be saved: {error}"
        raise IdentityError(problem, "Give other photos, or run the encoders on the CPU.") from error
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
    with _tell_damage(path):
        return _header(path, *_contents(path, everything=False))


def read(path: Path) -> SavedIdentity:
    """The whole identity.

    Raises:
        IdentityError: gone, too large, damaged, of another kind, or of a newer version.
    """
    with _tell_damage(path):
        metadata, tensors = _contents(path, everything=True)
        header = _header(path, metadata, tensors)
        if content_digest(metadata["photos"], metadata["encoders"], tensors) != header.digest:
            raise ValueError("its content is not what was saved")
        vectors = {key: value for key, value in tensors.items() if is_known(_vector_name(key))}
        for key, value in vectors.items():
            require_numbers(_vector_name(key), value)
        photos = _photos(json.loads(metadata["photos"]), vectors)
        zeros = {key.removeprefix(_ZEROS): value for key, value in vectors.items() if key.startswith(_ZEROS)}
        _require_one_length(photos[0], zeros)
        return SavedIdentity(**vars(header), photos=photos, zeros=MappingProxyType(zeros))


def content_digest(photos: str, encoders: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over the JSON of photos and encoders and all tensors, as hex."""
    sha = hashlib.sha256(f"{photos}\n{encoders}\n".encode())
    for key in sorted(tensors):
        value = np.ascontiguousarray(tensors[key])
        sha.update(f"{key} {value.dtype} {value.shape}\n".encode())
        sha.update(value.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _tensors(identity: SavedIdentity) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {_THUMBNAIL: np.frombuffer(identity.thumbnail, np.uint8)}
    tensors |= {f"{_ZEROS}{tower}": np.ascontiguousarray(value) for tower, value in identity.zeros.items()}
    for number, photo in enumerate(identity.photos):
        for detector, view in photo.views.items():
            for name, vector in view.vectors.items():
                tensors[f"{_PHOTOS}{number}.{detector}.{name}"] = _to_stored(name, vector)
    return tensors


def _to_stored(name: str, vector: Floats) -> NDArray[Any]:
    """A vector as it lies in the file, the largest in half precision."""
    half = is_large(name) and np.abs(vector).max(initial=0) < np.finfo(np.float16).max
    return np.ascontiguousarray(vector, np.float16 if half else np.float32)


def _facts(photo: SavedPhoto) -> dict[str, Any]:
    views = {
        name: {"faces": view.faces, "chosen": view.chosen, "box": list(view.box), "quality": asdict(view.quality)}
        for name, view in photo.views.items()
    }
    return {"digest": photo.digest, "weight": photo.weight, "views": views}


def _contents(path: Path, everything: bool) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Metadata and tensors of a file of this format; only the thumbnail of them unless everything is asked for.

    Nothing of a tensor is read before all of them have the kind and dimensions that their names say.
    """
    from safetensors import safe_open

    described = _read_description(path)
    metadata: dict[str, str] = described.pop("__metadata__", {})
    _require_identity(path, metadata)
    thumbnail = described.pop(_THUMBNAIL)
    if thumbnail["dtype"] != "U8" or math.prod(thumbnail["shape"]) > MAX_THUMBNAIL:
        raise ValueError("its thumbnail is no small PNG")
    for key, one in described.items():
        require_form(_vector_name(key), one["dtype"], one["shape"])
    with safe_open(str(path), framework="np") as file:  # holds what was described against the file
        keys = [_THUMBNAIL, *(described if everything else ())]
        return metadata, {key: cast("NDArray[Any]", file.get_tensor(key)) for key in keys}


def _read_description(path: Path) -> dict[str, Any]:
    """The JSON at the beginning of the file, by tensor. Refuses what the safetensors library would read for long."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            text = file.read(min(length, _MOST_TEXT))
    except OSError as error:
        problem = f"The saved identity {path.name} cannot be read ({error.strerror or error})"
        raise IdentityError(problem, "Check the file and its permissions.") from error
    if size > MAX_BYTES:
        raise IdentityError(
            f"{path.name} has {size / 2**20:.0f} MiB; saved identities have at most {MAX_BYTES / 2**20:.0f}",
            "It is another kind of file: move it out of the identities folder.",
        )
    if len(text) < length:
        raise ValueError(f"its description would have {length} bytes")
    return json.loads(text)


def _vector_name(key: str) -> str:
    """A tensor's name without its photo and detector."""
    return key.split(".", 3)[3] if key.startswith(_PHOTOS) else key


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
    thumbnail = tensors[_THUMBNAIL].tobytes()
    if not thumbnail.startswith(_PNG):
        raise ValueError("its thumbnail is no small PNG")
    encoders = {_plain(name): _plain(version) for name, version in json.loads(metadata["encoders"]).items()}
    hashes = tuple(_hash(photo["digest"]) for photo in json.loads(metadata["photos"]))
    if not 1 <= len(hashes) <= MAX_PHOTOS:
        raise ValueError(f"it has {len(hashes)} photos")
    created, digest = _plain(metadata["created"]), _hash(metadata["digest"])
    return IdentityHeader(path.stem, created, digest, thumbnail, MappingProxyType(encoders), hashes)


def _photos(listed: list[dict[str, Any]], tensors: Mapping[str, NDArray[Any]]) -> tuple[SavedPhoto, ...]:
    vectors: dict[tuple[int, str], dict[str, Floats]] = {}
    for key, vector in tensors.items():
        if key.startswith(_PHOTOS):
            _, number, detector, name = key.split(".", 3)
            vectors.setdefault((int(number), detector), {})[name] = vector
    photos: list[SavedPhoto] = []
    for number, facts in enumerate(listed):
        weight = float(facts["weight"])
        if not 1e-6 < weight < 1e6:
            raise ValueError(f"{naming.photo(number)} has the weight {weight}")
        views = {name: _view(view, vectors.get((number, name), {})) for name, view in facts["views"].items()}
        photos.append(SavedPhoto(_hash(facts["digest"]), weight, MappingProxyType(views)))
    if len({_layout(photo) for photo in photos}) != 1 or not photos[0].views:
        raise ValueError("its photos do not have the same vectors")
    return tuple(photos)


def _view(facts: dict[str, Any], vectors: Mapping[str, Floats]) -> FaceView:
    x1, y1, x2, y2 = (float(x) for x in facts["box"])
    quality = Quality(**{name: float(value) for name, value in facts["quality"].items()})
    faces, chosen = int(facts["faces"]), int(facts["chosen"])
    if not (np.abs([x1, y1, x2, y2, *vars(quality).values()]) < _FARTHEST).all():  # false of NaN
        raise ValueError("a face's box or quality is NaN, infinite or out of range")
    if not (0 <= chosen < faces < _FARTHEST and min(quality.face_px, quality.sharpness) >= 0):
        raise ValueError("a face's number, size or sharpness is out of range")
    return FaceView(faces, chosen, (x1, y1, x2, y2), quality, MappingProxyType(dict(vectors)))


def _layout(photo: SavedPhoto) -> frozenset[tuple[str, str, tuple[int, ...]]]:
    return frozenset(
        (detector, name, vector.shape)
        for detector, view in photo.views.items()
        for name, vector in view.vectors.items()
    )


def _require_one_length(photo: SavedPhoto, zeros: Mapping[str, Floats]) -> None:
    """Raises ValueError where hidden states of one CLIP tower [.., L, W] differ in L, which its name does not tell."""
    lengths = {tower: {value.shape[0]} for tower, value in zeros.items()}
    for view in photo.views.values():
        for name, vector in view.vectors.items():
            if name.startswith("clip/") and name.endswith("/hidden"):
                lengths.setdefault(network_of(name), set()).add(vector.shape[-2])
    for tower, found in lengths.items():
        if len(found) > 1:
            raise ValueError(f"its vectors of {tower} have {' and '.join(map(str, sorted(found)))} tokens")


def _plain(text: object) -> str:
    """A name, version or date, which lists show as they are."""
    if not isinstance(text, str) or not re.fullmatch(r"[\w.:+/ -]{0,200}", text, re.ASCII):
        raise ValueError("a name or version in it is none")
    return text


def _hash(text: object) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("a digest is not 64 hex digits")
    return text


@contextmanager
def _tell_damage(path: Path) -> Generator[None, None, None]:
    """Turns what the content of a file makes go wrong into an IdentityError that names the file."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, *_MALFORMED) as error:
        raise IdentityError(
            f"The saved identity {path.name} is damaged ({first_line(error, 120)})", _DAMAGED
        ) from error
