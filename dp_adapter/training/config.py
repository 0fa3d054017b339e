"""The configuration of a training run: one TOML file, checked before anything is loaded; table in docs/training.md."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast

from dp_adapter.errors import SettingsError
from dp_adapter.settings.field_types import Integer, Number, Text
from dp_adapter.settings.messages import show
from dp_adapter.text_files import read_text
from dp_adapter.training.toml_records import decode

StageKind = Literal["iea", "tca", "ffb"]
EncoderName = Literal["sface", "arcface", "transface"]

_MOST = 10**9  # steps
Words = Annotated[str, Text(4096)]
Name = Annotated[str, Text(4096, 1)]
Share = Annotated[float, Number(0, 1, 0.01)]
Weight = Annotated[float, Number(0, 1e6, 0.01)]
Reach = Annotated[float, Number(0, 4, 0.01)]
Steps = Annotated[int, Integer(0, _MOST)]
Count = Annotated[int, Integer(1, _MOST)]


@dataclass(frozen=True)
class BaseModelConfig:
    """The frozen model.

    Attributes:
        model: a diffusers folder, or one ``.safetensors`` or ``.ckpt`` file.
        config: for a single file of other widths than SD1.5's and SDXL's, a folder with its configurations.
        family: what it is; only needed to estimate a run (``--dry-run``) without the file.
    """

    model: Name
    config: Words = ""
    family: Literal["sd15", "sdxl"] = "sd15"


@dataclass(frozen=True)
class DataConfig:
    """Attributes:
    shards: tar files, names with ``*`` and ``?`` allowed.
    resolution: side of the training pictures in px, a multiple of 64.
    cache_latents: encode all pictures once and keep their latents, in memory and in ``out``.
    drop_identity, drop_text, drop_both: shares of samples without one or both conditions.
    hair: share of samples whose region holds the hair too.
    grow, feather: of the region, in widths of the face.
    workers: processes that read pictures; 0 with cached latents.
    """

    shards: tuple[Name, ...]
    resolution: Annotated[int, Integer(64, 8192, 64)] = 512
    cache_latents: bool = False
    drop_identity: Share = 0.05
    drop_text: Share = 0.05
    drop_both: Share = 0.05
    hair: Share = 0.3
    grow: Reach = 0.06
    feather: Reach = 0.04
    workers: Annotated[int, Integer(0, 1024)] = 0


@dataclass(frozen=True)
class AdapterConfig:
    """Attributes:
    encoder: the face network whose embedding the identity tokens are made of.
    tokens: identity tokens T.
    tca_rank: of the text pathway's low-rank weights, from the first stage that trains them on; 0 for none.
    gated: FaceChain-FACT's pathway before the text attention (SD1.5, TransFace); without TCA and FFB.
    start: an adapter file to begin with (FaceID, FaceID-Plus, FaceID-Portrait, FACT, or one of ours).
    """

    encoder: EncoderName = "sface"
    tokens: Annotated[int, Integer(1, 1024)] = 4
    tca_rank: Annotated[int, Integer(0, 4096)] = 16
    gated: bool = False
    start: Words = ""

    @property
    def mode(self) -> Literal["add", "gated"]:
        """How the adapter acts, as ``AdaptedUNet`` takes it."""
        return "gated" if self.gated else "add"


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; 0 leaves one out, with what it costs. Defaults depend on the stage, see ``DEFAULT_LOSSES``.

    Attributes:
        face: (1 + face_gain M) MSE; face_only: share of samples whose loss counts inside M alone.
        background: (1 - M) MSE.
        consistency: ‖(1 - M)(eps - eps of the base model)‖².
        swap: ‖(1 - M)(eps(c_id) - sg eps(c'_id))‖², c'_id between this person and another.
        localisation: attention outside M minus inside, over the middle five stages.
        fair: FaceChain-FACT's change of features outside M.
        edit: MasterWeaver's editing directions, every second step.
        identity: 1 - cos of the face in the decoded prediction, for timesteps up to 250.
        story: StoryMaker's mask loss.
        text_off: share of samples whose text attention is switched off.
    """

    face: Weight = 0.0
    face_gain: Weight = 5.0
    face_only: Share = 0.0
    background: Weight = 0.0
    consistency: Weight = 0.0
    swap: Weight = 0.0
    localisation: Weight = 0.0
    fair: Weight = 0.0
    edit: Weight = 0.0
    identity: Weight = 0.0
    story: Weight = 0.0
    text_off: Share = 0.0


DEFAULT_LOSSES: Mapping[StageKind, LossWeights] = MappingProxyType(
    {
        "iea": LossWeights(face=1.0, face_only=0.5, localisation=0.01, text_off=0.5),
        "tca": LossWeights(background=1.0, consistency=0.4, swap=0.6),
        "ffb": LossWeights(face=1.0, consistency=0.4, swap=0.6, fair=0.01, edit=0.02, identity=0.1),
    }
)
"""Loss weights of the three stages, method.md, Training [ours]."""


@dataclass(frozen=True)
class TrainingStage:
    """Attributes:
    kind: what is trained: ``iea`` (projection, keys, values), ``tca`` (text pathway), ``ffb`` (all, IEA slower).
    batch: samples a process and forward pass; accumulate: forward passes a step.
    warmup: steps over which the learning rate rises; schedule: what it does then.
    iea_lr: factor on the learning rate of the IEA's weights in stage ``ffb``.
    clip: largest norm of the gradient; 0 for none.
    losses: see ``LossWeights``.
    """

    kind: StageKind
    steps: Count
    lr: Annotated[float, Number(1e-12, 100, 1e-5)] = 1e-4
    weight_decay: Weight = 0.01
    batch: Annotated[int, Integer(1, 65536)] = 8
    accumulate: Annotated[int, Integer(1, 65536)] = 1
    warmup: Steps = 0
    schedule: Literal["constant", "cosine"] = "constant"
    iea_lr: Weight = 0.1
    clip: Weight = 1.0
    losses: LossWeights = field(default_factory=LossWeights)

    @property
    def edited_rows(self) -> int:
        """Samples of a batch whose captions the editing loss changes."""
        return max(1, self.batch // 4)


@dataclass(frozen=True)
class MonitorConfig:
    """Attributes:
    every: steps between two points of the loss curves.
    checkpoint_every, samples_every: steps between two checkpoints and two sample grids; 0 for none on the way.
    keep: checkpoints that are kept, the latest ones.
    samples: rows of a grid; sample_steps, guidance: how they are sampled.
    """

    every: Count = 10
    checkpoint_every: Steps = 1000
    samples_every: Steps = 1000
    keep: Count = 3
    samples: Annotated[int, Integer(0, 1024)] = 4
    sample_steps: Annotated[int, Integer(1, 1000)] = 20
    guidance: Annotated[float, Number(0, 1000, 0.5)] = 5.0


@dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
        out: folder for checkpoints, logs and the result.
        precision: of the frozen models and of the mixed-precision passes; trained weights stay in float32.
        gradient_checkpointing: recompute the UNet's activations instead of keeping them.
        ema: decay of the running average of the weights; 0 for none.
        device: ``auto``, or ``cpu`` even where there is a GPU.
        edits: what MasterWeaver's loss adds to captions; needed where a stage has ``losses.edit``.
    """

    out: Name
    base: BaseModelConfig
    data: DataConfig
    stage: tuple[TrainingStage, ...]
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    watch: MonitorConfig = field(default_factory=MonitorConfig)
    seed: Annotated[int, Integer(0, 2**62)] = 0
    precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    ema: Annotated[float, Number(0, 0.999999999, 0.0001)] = 0.9999
    device: Literal["auto", "cpu"] = "auto"
    edits: tuple[Name, ...] = ("smiling", "angry", "with eyeglasses", "old", "young", "black and white")

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stage)

    @property
    def folder(self) -> Path:
        return Path(self.out)


def read(path: Path, changes: Sequence[str] = ()) -> Config:
    """A run from a file.

    Args:
        changes: ``KEY=VALUE`` each, the key dotted (``data.resolution=256``, ``stage.0.steps=10``), the value as TOML
            writes it, or plain text.

    Raises:
        SettingsError: the file is missing or no TOML, or says something that cannot be run.
    """
    try:
        if path.exists() and not path.is_file():  # a named pipe would be waited for
            raise ValueError("it is no file")
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise SettingsError("config", f"{path} cannot be read ({error})", "Check the path.") from error
    tables = _parse_toml(text, str(path))
    for change in changes:
        _apply_change(tables, change)
    return from_tables(tables)


def from_tables(tables: Mapping[str, object]) -> Config:
    """A run from parsed TOML. Raises SettingsError as ``read``."""
    tables = dict(tables)
    stages = tables.get("stage")
    if not isinstance(stages, list) or not stages:
        raise SettingsError("stage", "there is none", "Write at least one [[stage]] table with its kind and steps.")
    tables["stage"] = [_fill_in_losses(one) for one in cast("list[object]", stages)]
    config = decode(Config, tables)
    _check(config)
    return config


def to_tables(config: Config) -> dict[str, Any]:
    """The whole run as JSON can hold it, every default written out."""
    return dataclasses.asdict(config)


def _fill_in_losses(table: object) -> object:
    """A stage's table, with its kind's default weights for the losses that it does not name; others as they are."""
    if not isinstance(table, Mapping):
        return table
    stage = cast("Mapping[str, object]", table)
    kind, losses = stage.get("kind"), stage.get("losses", {})
    if not (isinstance(kind, str) and kind in DEFAULT_LOSSES and isinstance(losses, Mapping)):
        return stage
    weights = dataclasses.asdict(DEFAULT_LOSSES[cast(StageKind, kind)])
    return {**stage, "losses": {**weights, **cast("Mapping[str, object]", losses)}}


def _parse_toml(text: str, name: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib as library
    else:
        import tomli as library  # the same parser before Python 3.11
    try:
        return library.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and lists as deep
        raise SettingsError("config", f"{name} is no TOML ({error})", "Correct that line.") from error


def _apply_change(tables: dict[str, Any], change: str) -> None:
    path, equals, value = change.partition("=")
    if not equals:
        raise SettingsError(show(path), "no value was given", "Write --set KEY=VALUE.")
    at: dict[str, Any] | list[Any] = tables
    *parents, last = path.strip().split(".")
    for name in parents:
        inner: object
        if isinstance(at, dict):
            inner = at.setdefault(name, {})
        elif re.fullmatch(r"\d{1,6}", name, re.ASCII) and int(name) < len(at):
            inner = at[int(name)]
        else:
            raise SettingsError(path, f"there is no number '{name}'", f"There are {len(at)}, from 0.")
        if not isinstance(inner, dict | list):
            raise SettingsError(path, f"'{name}' is no table", "Check the key.")
        at = cast("dict[str, Any] | list[Any]", inner)
    if not isinstance(at, dict):
        raise SettingsError(path, "names a list", "Give a number and a key, as in stage.0.steps=10.")
    try:
        at[last] = _parse_toml(f"value = {value}", "value")["value"]
    except SettingsError:
        at[last] = value


def _check(config: Config) -> None:
    """Checks what no field can tell alone."""
    for i, stage in enumerate(config.stage):
        _check_adapter(config, stage, f"stage[{i}]")
    side = config.data.resolution
    _require(side % 64 == 0, "data.resolution", f"{side} is no multiple of 64", side // 64 * 64)
    _require(bool(config.data.shards), "data.shards", "there are none", "shards/*.tar")


def _check_adapter(config: Config, stage: TrainingStage, at: str) -> None:
    plan = config.adapter
    if plan.gated:
        _require(
            plan.encoder == "transface", "adapter.encoder", "the gated pathway takes TransFace's tokens", "transface"
        )
        _require(stage.kind == "iea", f"{at}.kind", "the gated pathway has no TCA and no FFB", "iea")
        _require(config.base.family == "sd15", "base.family", "the gated pathway is made for SD1.5", "sd15")
        for name in ("localisation", "story"):
            problem = "the gated pathway has no attention beside the text's; fair keeps it in its region"
            _require(not getattr(stage.losses, name), f"{at}.losses.{name}", problem, 0)
    elif plan.encoder == "transface":
        raise SettingsError("adapter.encoder", "TransFace's tokens are for the gated pathway", "Set gated = true.")
    _require(stage.kind != "tca" or plan.tca_rank > 0, "adapter.tca_rank", f"{at} trains a TCA that is not there", 16)
    _require(not stage.losses.edit or bool(config.edits), "edits", f"{at} needs words to edit with", "smiling")


def _require(good: bool, name: str, problem: str, nearest: object) -> None:
    if not good:
        raise SettingsError(name, problem, f"Take {nearest}.", nearest)
