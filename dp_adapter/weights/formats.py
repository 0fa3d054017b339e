"""The table of checkpoint families: recognised by keys, read with sizes from shapes.

Layouts: docs/formats.md. Sources: tencent-ailab/IP-Adapter@62e4af9, instantX-research/InstantID@2145b67,
modelscope/facechain@7bc7119, ToTheBeginning/PuLID@1aa2fc7, RedAIGC/StoryMaker@a7ce766, csyxwei/MasterWeaver@a77535c,
csxmli2016/w-plus-adapter@c649408; each reader is held to their outputs by ``tests/golden``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dp_adapter.errors import WeightsError
from dp_adapter.weights import foreign_files
from dp_adapter.weights.checkpoint import BuiltInTower, Checkpoint
from dp_adapter.weights.damage import refuse_damage, require_plain
from dp_adapter.weights.families import (
    consistentid,
    facechain_fact,
    ip_adapter,
    masterweaver,
    mip_adapter,
    own_adapter,
    personal,
    photomaker,
    pulid,
    storymaker,
    w_plus,
)
from dp_adapter.weights.files import WeightFile, open_weights, require_finite
from dp_adapter.weights.key_aliases import rename_keys
from dp_adapter.weights.trial import try_recipe


@dataclass(frozen=True)
class Format:
    """One row, whose functions get files after ``rename_keys``.

    Attributes:
        matches: whether a file is of this family, by its keys and shapes.
        reader: builds the checkpoint.
        tower: reads nothing but the vision tower inside, for families that have one.
    """

    family: str
    title: str
    matches: Callable[[WeightFile], bool]
    reader: Callable[[WeightFile, str, str], Checkpoint]
    tower: Callable[[WeightFile], BuiltInTower] | None = None

    def recognise(self, file: WeightFile) -> bool:
        """Whether a file is of this family. Raises WeightsError where its shapes cannot be looked at."""
        with refuse_damage(file.path, self.title):
            return self.matches(rename_keys(file))

    def read(self, file: WeightFile) -> Checkpoint:
        """Raises WeightsError, whatever is wrong with the file's tensors."""
        with refuse_damage(file.path, self.title):
            checkpoint = self.reader(_prepare(file), self.family, self.title)
            try_recipe(checkpoint)
            return checkpoint

    def read_tower(self, file: WeightFile) -> BuiltInTower | None:
        """Raises as `read`."""
        with refuse_damage(file.path, self.title):
            return None if self.tower is None else self.tower(_prepare(file))


def _prepare(file: WeightFile) -> WeightFile:
    """A file as readers take it: its keys renamed, and nothing in it but numbers that can be computed with."""
    renamed = rename_keys(file)
    require_plain(file.path, renamed.tensors)
    return renamed


FORMATS: tuple[Format, ...] = (
    Format("dp-adapter", "DP-Adapter", own_adapter.recognise, own_adapter.read),
    Format("personal", "Personalised identity (ID-EA)", personal.recognise, personal.read),
    Format("faceid-plus", "IP-Adapter-FaceID-Plus", ip_adapter.is_face_plus, ip_adapter.read_face_plus),
    Format("faceid-portrait", "IP-Adapter-FaceID-Portrait", ip_adapter.is_portrait, ip_adapter.read_portrait),
    Format("faceid", "IP-Adapter-FaceID", ip_adapter.is_face, ip_adapter.read_face),
    Format("faceid-sequence", "InstantID / FaceID-Portrait-Unnorm", ip_adapter.is_sequence, ip_adapter.read_sequence),
    Format("ip-adapter-plus", "IP-Adapter Plus", ip_adapter.is_plus, ip_adapter.read_plus),
    Format("ip-adapter-full-face", "IP-Adapter Full-Face", ip_adapter.is_full, ip_adapter.read_full),
    Format("ip-adapter", "IP-Adapter", ip_adapter.is_standard, ip_adapter.read_standard),
    Format("mip-adapter", "MIP-Adapter", mip_adapter.is_standard, mip_adapter.read_standard),
    Format("mip-adapter-plus", "MIP-Adapter Plus", mip_adapter.is_plus, mip_adapter.read_plus),
    Format("photomaker", "PhotoMaker", photomaker.recognise, photomaker.read, photomaker.read_tower),
    Format("consistentid", "ConsistentID", consistentid.recognise, consistentid.read),
    Format("facechain-fact", "FaceChain-FACT", facechain_fact.recognise, facechain_fact.read),
    Format(
        "facechain-fact-first",
        "FaceChain-FACT (first version)",
        facechain_fact.recognise_first,
        facechain_fact.read_first,
    ),
    Format("pulid", "PuLID", pulid.recognise, pulid.read),
    Format("storymaker", "StoryMaker", storymaker.recognise, storymaker.read),
    Format("masterweaver", "MasterWeaver", masterweaver.recognise, masterweaver.read),
    Format("w-plus", "W+ adapter", w_plus.recognise, w_plus.read),
)


def read(path: Path, family: str | None = None) -> Checkpoint:
    """Reads any supported adapter file.

    Args:
        family: a row of the table to read it as, when it is known; None lets the keys decide.

    Raises:
        WeightsError: see ``open_weights``; or the file is another kind of model, or its layers are incomplete.
    """
    return read_opened(open_weights(path), family)


def read_opened(opened: WeightFile, family: str | None = None) -> Checkpoint:
    """As `read`, of a file that is open."""
    row = recognise(opened) if family is None else _row(family)
    if row is None:
        name, kind = opened.path.name, foreign_files.describe(opened.tensors)
        raise WeightsError(f"{name} is not a supported identity adapter: {kind}")
    checkpoint = row.read(file := rename_keys(opened))
    require_finite(file)
    return checkpoint


def _row(family: str) -> Format:
    rows = {row.family: row for row in FORMATS}
    if family not in rows:
        raise WeightsError(f"There is no family '{family}' of adapters", f"Known are {', '.join(rows)}.")
    return rows[family]


def recognise(file: WeightFile) -> Format | None:
    """The first row whose predicate holds, or None. Raises WeightsError where its keys or shapes cannot be read."""
    with refuse_damage(file.path, "an adapter"):
        renamed = rename_keys(file)
    return next((row for row in FORMATS if row.recognise(renamed)), None)


def read_tower(file: WeightFile) -> BuiltInTower | None:
    """The vision tower inside a file, without the rest of it; None where there is none.

    Raises:
        WeightsError: it is incomplete, or holds NaN or infinite values.
    """
    row = recognise(file)
    return None if row is None else row.read_tower(file)
