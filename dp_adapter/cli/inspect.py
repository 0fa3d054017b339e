"""``dp-adapter inspect``: what is this checkpoint, what does it need, does it fit?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dp_adapter.errors import DPAdapterError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``inspect`` to the command line."""
    parser = subparsers.add_parser("inspect", help="what is this checkpoint?", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="one JSON object per file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0, or 1 when it cannot be told what a file is."""
    failed = 0
    for path in args.files:
        try:
            facts = describe(path)
        except DPAdapterError as error:
            facts, failed = {"file": path.name, "error": str(error)}, 1
        if args.json:
            print(json.dumps(facts))
        else:
            width = max(map(len, facts))
            print("\n".join(f"{name:{width}}  {value}" for name, value in facts.items()), end="\n\n")
    return failed


def describe(path: Path) -> dict[str, Any]:
    """Facts about an adapter file, or what another file is.

    Raises:
        WeightsError: it cannot be read, or its keys are unknown.
    """
    from dp_adapter.weights import foreign_files, formats
    from dp_adapter.weights.checkpoint import BASE_NAMES
    from dp_adapter.weights.files import file_digest, open_weights

    stored = {"size": f"{path.stat().st_size / 1e6:.1f} MB", "sha256": file_digest(path)} if path.is_file() else {}
    file = open_weights(path)
    known = foreign_files.identify(file.tensors) if formats.recognise(file) is None else None
    if known is not None:
        return {"file": path.name, "type": f"no adapter: {known.title}", "use": known.advice, **stored}
    checkpoint = formats.read(path)
    shares_keys = len(checkpoint.variants) > 1
    return {
        "file": path.name,
        "type": checkpoint.title,
        "family": checkpoint.family,
        "variant": f"cannot be told from the keys: {' or '.join(checkpoint.variants)}" if shares_keys else "-",
        "base": BASE_NAMES[checkpoint.base],
        "sites": len(checkpoint.adapter.sites),
        "tokens per photo": checkpoint.tokens_per_photo,
        "context width": checkpoint.context,
        "needs": ", ".join(f"{name} ({width})" for name, width in checkpoint.features_width.items()) or "no photo",
        "several photos": checkpoint.combine,
        "blend": checkpoint.mode,
        "gate": "sees faces in predictions" if checkpoint.adapter.gate is not None else "the region's mask",
        "identity guidance": "none" if checkpoint.guidance is None else f"{checkpoint.guidance:g}",
        "LoRA in the file": f"{len(checkpoint.lora)} layers" if checkpoint.lora else "none",
        **stored,
        **({"training": checkpoint.metadata.get("training", "")} if checkpoint.metadata else {}),
    }
