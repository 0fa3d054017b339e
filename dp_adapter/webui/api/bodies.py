"""Bodies and answers of the routes, in the part of pydantic that versions 1 and 2 share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

_SETTINGS = "The request: photos, face choice, regions and the rest, as GET schema describes it."
_IMAGE = "A picture as base64, as a data URL, or photo:HASH of one that was dropped into the panel."


class Request(BaseModel, extra="forbid"):
    """A request as `alwayson_scripts` takes it."""

    settings: dict[str, Any] = Field(..., description=_SETTINGS)


class SaveIdentity(Request):
    """What to save."""

    name: str = Field(..., description="1 to 64 letters, digits, spaces, hyphens or underscores.")
    replace: bool = Field(False, description="Whether an identity of this name may be overwritten.")


class Rename(BaseModel, extra="forbid"):
    """A new name."""

    name: str = Field(..., description="1 to 64 letters, digits, spaces, hyphens or underscores.")


class FacesRequest(BaseModel, extra="forbid"):
    """A photo to look at."""

    image: str = Field(..., description=_IMAGE)
    face: dict[str, Any] = Field({}, description="Face choice, as the settings' field `face`.")
    thumbnails: bool = Field(False, description="Whether to send a small picture of each face.")


class RegionsRequest(Request):
    """A picture to be made."""

    width: int = Field(512, ge=64, le=4096, description="Of the picture to be made, in pixels.")
    height: int = Field(512, ge=64, le=4096, description="Of the picture to be made, in pixels.")
    init: str = Field("", description="The init picture of img2img, in which faces are looked for. " + _IMAGE)
    masks: bool = Field(False, description="Whether to send each region as a picture.")
    parts: bool = Field(False, description="Whether to send the parts of each face in the init picture as pictures.")


class Refusal(BaseModel):
    """What is wrong and what to do."""

    detail: str = Field(..., description="In words.")
    field: str | None = Field(None, description="Dotted name of the field that is refused, where it is one.")


class Version(BaseModel):
    """What runs here."""

    version: str = Field(..., description="Of the extension.")
    settings: int = Field(..., description="Version of the form of the settings.")
    webui: str = Field(..., description="a1111, forge, neo, reforge or classic.")
    base: str | None = Field(None, description="sd15 or sdxl; left out when no supported checkpoint is loaded.")


class Model(BaseModel):
    """One adapter file."""

    name: str = Field(..., description="As the settings' field `model` takes it.")
    fits: bool = Field(..., description="Whether it can be used with the loaded checkpoint.")
    title: str | None = Field(None, description="Its family in words.")
    base: str | None = Field(None, description="sd15 or sdxl, what it was made for.")
    variants: list[str] = Field([], description="What it may be where its content cannot tell; see `variant`.")
    reason: str | None = Field(None, description="Why it does not fit or cannot be used.")


class ModelList(BaseModel):
    """All adapter files."""

    models: list[Model]


class ModeAnswer(BaseModel):
    """One edit mode."""

    name: str = Field(..., description="As the settings' field `mode` takes it.")
    title: str | None = Field(None, description="Its name in words.")
    does: list[str] = Field([], description="What it does, in sentences.")
    needs: list[str] = Field([], description="Fields of the settings that must be given with it.")
    problem: str | None = Field(None, description="Why its file cannot be used.")


class ModeList(BaseModel):
    """All edit modes."""

    modes: list[ModeAnswer]


class IdentityAnswer(BaseModel):
    """One saved identity."""

    name: str = Field(..., description="`identity:NAME` stands for it wherever a photo can stand.")
    created: str | None = Field(None, description="UTC, ISO 8601.")
    digest: str | None = Field(None, description="SHA-256 of its content as hex.")
    photos: list[str] = Field([], description="Hashes of the photos that it was made from.")
    encoders: dict[str, str] = Field({}, description="Versions by name, of the encoders whose vectors it has.")
    thumbnail: str | None = Field(None, description="A PNG as base64; in lists it is left out.")
    notes: list[str] | None = Field(None, description="What was left out in saving it, in words.")
    problem: str | None = Field(None, description="Why its file cannot be used.")


class IdentityList(BaseModel):
    """All saved identities."""

    identities: list[IdentityAnswer]


class Deleted(BaseModel):
    """What is gone."""

    deleted: str


class FaceAnswer(BaseModel):
    """One face."""

    index: int = Field(..., description="From the left, from 0.")
    box: list[float] = Field(..., description="Left, top, right, bottom in pixels.")
    score: float = Field(..., description="The detector's confidence, 0 to 1.")
    size: float = Field(..., description="Side in pixels of the square of the box's area.")
    quality: float = Field(..., description="As a reference, 0 to 1.")
    warnings: list[str] = Field([], description="What lowers the quality, in words.")
    thumbnail: str | None = Field(None, description="A PNG as base64, on request.")


class FacesAnswer(BaseModel):
    """All faces of a photo."""

    photo: str = Field(..., description="photo:HASH; stands for the picture in later requests while it is kept.")
    width: int
    height: int
    faces: list[FaceAnswer]
    chosen: int | None = Field(None, description="Index of the face that would be taken; left out when none would.")
    reason: str | None = Field(None, description="Why none would be taken.")


class RegionAnswer(BaseModel):
    """Where one person acts."""

    person: int = Field(..., description="As in the settings, from 0.")
    source: str = Field(..., description="Where the region comes from, and what becomes of it, in words.")
    coverage: float = Field(..., description="Share of the picture inside it at the first step, 0 to 1.")
    known: bool = Field(..., description="Whether it comes from something that says where the face is.")
    follows: bool = Field(..., description="Whether it goes to the face and with it while the picture forms.")
    mask: str | None = Field(
        None, description="A PNG as base64, white where the identity acts at the first step; on request."
    )
    parts: dict[str, str] | None = Field(
        None, description="PNGs as base64 by the name of the part; on request, where a face was found."
    )


class RegionsAnswer(BaseModel):
    """Where everybody acts."""

    width: int
    height: int
    regions: list[RegionAnswer]
    notes: list[str] = Field([], description="Persons who have no region while others have one, in words.")


class PhotoVector(BaseModel):
    """The chosen face of one photo."""

    photo: str = Field(..., description="Hash of the picture's content.")
    weight: float = Field(..., description="Its share in the person's identity.")
    vector: list[float] = Field(..., description="Unit length; a product of two is their likeness.")


class PersonVector(BaseModel):
    """One person."""

    person: int = Field(..., description="As in the settings, from 0.")
    vector: list[float] = Field(..., description="Mean direction of the photos by weight, unit length.")
    photos: list[PhotoVector]


class Vectors(BaseModel):
    """Face vectors."""

    encoder: str
    dimensions: int
    persons: list[PersonVector]
    notes: list[str] = Field([], description="Photos that were left out, in words.")
