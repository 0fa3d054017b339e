"""Serves the fake host's page: ``python -m tests.webui.serve PORT MODELS BASE``, in an environment with gradio."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.webui import fake_webui

ROOT = Path(__file__).parents[2]


def main() -> None:
    port, models, base = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    sys.modules.update(fake_webui.host_modules(models))
    from dp_adapter.webui.host import shared_session

    shared_session.base = lambda: base  # type: ignore[assignment,return-value]
    demo = fake_webui.page((ROOT / "style.css").read_text(encoding="utf-8"))
    demo.queue().launch(server_port=port, quiet=True, show_api=False)


if __name__ == "__main__":
    main()
