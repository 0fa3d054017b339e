"""Command-line flags of the extension; the WebUI calls this before it parses its own."""

import argparse
import os


def preload(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; their values are read as ``shared.cmd_opts.dp_adapter_…``."""
    # onnxruntime reports to Microsoft unless this stands before any extension loads it
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    group = parser.add_argument_group("DP-Adapter")
    group.add_argument("--dp-adapter-dir", metavar="DIR", help="a further folder with adapter models")
    group.add_argument("--dp-adapter-cache", type=int, metavar="N", help="adapter models kept in memory (2)")
    group.add_argument(
        "--dp-adapter-loglevel", metavar="LEVEL", choices=("debug", "info", "warning", "error"), help="(info)"
    )
