"""A picture of a person through the WebUI's API, with the package ``webuiapi`` (``pip install webuiapi``).

    python examples/webuiapi_client.py http://127.0.0.1:7860 anna.jpg "portrait of a woman in a library" --out out.png

The WebUI runs with ``--api``; for ``--api-auth`` put user and password into the address, http://user:password@127.0.0.1:7860.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from webuiapi import WebUIApi


def connect(url: str) -> WebUIApi:
    """A client of the WebUI at this address."""
    parts = urlsplit(url)
    address = f"{parts.scheme}://{parts.hostname}:{parts.port or 7860}/sdapi/v1"
    return WebUIApi(baseurl=address, username=parts.username, password=parts.password)


def settings(photo: Path, **changes: Any) -> dict[str, Any]:
    """The least that DP-Adapter needs, and what docs/settings.md lists besides."""
    return {"references": [{"image": base64.b64encode(photo.read_bytes()).decode()}], **changes}


def generate(api: WebUIApi, request: dict[str, Any], **options: Any) -> Any:
    """One txt2img with DP-Adapter.

    Args:
        options: of the WebUI itself: prompt, steps, width and so on.

    Raises:
        SystemExit: the WebUI refuses the request; says what is wrong and what to do.
    """
    try:
        return api.txt2img(**options, alwayson_scripts={"DP-Adapter": {"args": [request]}})
    except RuntimeError as error:  # webuiapi raises it with status and text of the answer
        raise SystemExit(_words(error)) from error


def _words(error: RuntimeError) -> str:
    try:
        return str(json.loads(error.args[1])["detail"])
    except (IndexError, ValueError, KeyError, TypeError):
        return str(error)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One picture of a person through the WebUI's API.")
    parser.add_argument("url", help="of the WebUI, such as http://127.0.0.1:7860")
    parser.add_argument("photo", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--model", default="", help="adapter file; the only one by default")
    parser.add_argument("--weight", type=float, default=0.8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("out.png"))
    args = parser.parse_args(arguments)
    request = settings(args.photo, model=args.model, weight=args.weight)
    result = generate(
        connect(args.url), request, prompt=args.prompt, steps=args.steps, width=args.size, height=args.size
    )
    result.image.save(args.out)
    print(result.info["infotexts"][0])  # noqa: T201 - what a program on the command line is for


if __name__ == "__main__":
    main(sys.argv[1:])
