"""Prints what a panel is, as JSON: ``python -m tests.webui.panel_facts MODELS``, in an environment with gradio."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.webui import fake_webui


def main() -> None:
    sys.modules.update(fake_webui.host_modules(Path(sys.argv[1])))
    import gradio as gr

    # What the WebUI has loaded by itself does not count.
    before = set(sys.modules)
    script = fake_webui.PanelScript()
    defaults: list[list[Any]] = []
    for _ in range(3):  # as the API does to read the defaults
        with gr.Blocks():
            defaults.append([component.value for component in script.ui(False)])
    loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
    built = script.panels[0]
    facts = {
        "gradio": gr.__version__,
        "names": list(built.by_name),
        "order": [name for arg in built.components for name, one in built.by_name.items() if one is arg],
        "defaults": defaults,
        "loaded": loaded,
        "session": "dp_adapter.session" in sys.modules,
        "widgets": {name: _facts(one) for name, one in built.by_name.items()},
        "shared": any(a is b for a in script.panels[0].components for b in script.panels[1].components),
    }
    sys.stdout.write(json.dumps(facts))


def _facts(component: Any) -> dict[str, Any]:
    names = ("label", "minimum", "maximum", "step", "elem_id", "webui_tooltip", "visible", "do_not_save_to_config")
    return {"kind": component.get_block_name(), **{name: getattr(component, name, None) for name in names}}


if __name__ == "__main__":
    main()
