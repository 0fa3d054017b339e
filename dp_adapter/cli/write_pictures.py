"""Writes pictures with what made them: PNG text chunks and a JSON file beside each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from dp_adapter import __version__
from dp_adapter.generation import Generation, Result
from dp_adapter.hosts.pipelines.load_pipeline import DiffusersJob
from dp_adapter.modes import Mode, mode_parameters
from dp_adapter.session import Explanation
from dp_adapter.session.results.best_of import describe_picture
from dp_adapter.session.results.judge import JUDGE
from dp_adapter.settings import Settings, infotext_name
from dp_adapter.settings.result_sections import RESULT


def write(
    folder: Path,
    base: str,
    settings: Settings,
    mode: Mode,
    job: DiffusersJob,
    generation: Generation,
    seconds: float,
    suffix: str = "",
) -> list[Path]:
    """Writes ``<number>_<seed><suffix>.png`` and ``.json`` for every picture; never overwrites.

    Args:
        mode: the request's.

    Returns:
        Paths of the pictures, but for those that are left out.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for result in generation.kept:
        made = _job_facts(job, base, result.seed)
        facts = {
            "dp_adapter": __version__,
            "job": made,
            "settings": shareable_settings(settings),
            "explanation": generation.explanation.to_dict(),
            "likeness": {"judge": JUDGE, "cosine": result.likeness},
            "report": dict(result.facts),
            "seconds": round(seconds / len(generation.results), 2),
        }
        info = PngInfo()
        info.add_itxt(
            "parameters", format_infotext(made, describe_picture(settings, mode), generation.explanation, result)
        )
        info.add_itxt("dp_adapter", json.dumps(facts))
        path = _next_path(folder, f"{result.seed}{suffix}")
        Image.fromarray(result.picture).save(path, pnginfo=info)
        path.with_suffix(".json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
        paths.append(path)
    return paths


def shareable_settings(settings: Settings) -> dict[str, Any]:
    """The changed settings without photos and paths, which must not travel inside a shared picture."""
    facts = settings.to_dict(changed_only=True)
    choices: list[dict[str, Any]] = [facts.get("face", {})]
    for reference in facts.get("references", []):
        reference.pop("image", None)
        choices.append(reference.get("face") or {})
    for choice in choices:
        choice.pop("like", None)
    for region in facts.get("regions", []):
        region.pop("mask", None)
    facts["model"] = Path(settings.model).name
    return facts


def format_infotext(job: dict[str, Any], settings: Settings, explanation: Explanation, result: Result) -> str:
    """The prompt and parameters in the form that WebUIs show; of the settings, the changed fields of plain values.

    Args:
        settings: as they describe the picture.
    """
    lines = [job["prompt"]]
    if job["negative_prompt"]:
        lines.append(f"Negative prompt: {job['negative_prompt']}")
    parameters = {
        "Steps": job["steps"],
        "Sampler": job["sampler"],
        "CFG scale": job["guidance"],
        "Seed": job["seed"],
        "Size": f"{job['width']}x{job['height']}",
        "Model": job["base"],
    }
    if settings.enabled and explanation.left_out:
        parameters[f"{RESULT}photos left out"] = " ".join(explanation.left_out)
    if settings.enabled and explanation.idle and "face pass" not in result.facts:
        parameters[f"{RESULT}identity"] = f"none acted: {explanation.idle}"
    elif settings.enabled:
        parameters |= {"DP-Adapter": __version__, "DP-Adapter model": explanation.model}
        parameters |= {infotext_name("weight"): settings.weight}
        parameters |= {infotext_name(path): value for path, value in _plain_fields(shareable_settings(settings))}
        parameters |= {RESULT + name: value for name, value in result.facts.items()}
        parameters |= mode_parameters(explanation.words)
    return "\n".join([*lines, ", ".join(f"{name}: {_quote(value)}" for name, value in parameters.items())])


def _quote(value: object) -> str:
    """As the WebUI's infotext_utils.quote, so that a comma in a value does not end it."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(",:\n") else text


def _plain_fields(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted path and value of every field that is no list and not written already."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _plain_fields(cast("dict[str, Any]", value), f"{prefix}{name}.")
        elif not isinstance(value, list) and prefix + name not in ("version", "model"):
            yield prefix + name, value


def _job_facts(job: DiffusersJob, base: str, seed: int) -> dict[str, Any]:
    names = ("prompt", "negative_prompt", "width", "height", "steps", "guidance", "sampler", "strength")
    facts: dict[str, Any] = {name: getattr(job, name) for name in names}
    kind = "txt2img" if job.init is None else "img2img" if job.mask is None else "inpaint"
    return {"kind": kind, "base": base, "seed": seed, **facts}


def _next_path(folder: Path, name: str) -> Path:
    """The next number that is not taken yet, so that nothing is overwritten."""
    taken = [int(path.name[:5]) for path in folder.glob("[0-9][0-9][0-9][0-9][0-9]_*.png")]
    return folder / f"{max(taken, default=-1) + 1:05}_{name}.png"
