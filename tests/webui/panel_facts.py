"""Prints what a panel is, as JSON: ``python -m tests.webui.panel_facts MODELS``, in an environment with gradio."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
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
        "checkpoints": _checkpoints(Path(sys.argv[1])),
        "shared": any(a is b for a in script.panels[0].components for b in script.panels[1].components),
    }
    sys.stdout.write(json.dumps(facts))


def _checkpoints(models: Path) -> list[list[str]]:
    """What the two panels of a page say when a checkpoint that says what it was made for is chosen, then another one.

    As in the hosts, tabs are pages of their own, and the list of checkpoints is built after them.
    """
    import gradio as gr

    from dp_adapter.webui.panel.host_components import HOST

    (models / "small").mkdir(parents=True)
    (models / "small" / "model_index.json").write_text("{}")
    usage = {"width": 128, "height": 128, "guidance": 3, "clip_skip": 1}
    (models / "small" / "usage.json").write_text(json.dumps(usage))

    def closest(title: str) -> SimpleNamespace:
        return SimpleNamespace(filename=str(models / title))

    vars(sys.modules["modules.sd_models"])["get_closet_checkpoint_match"] = closest
    HOST.start_page()
    tabs: list[Any] = []
    for is_img2img in (False, True):
        with gr.Blocks() as tab:
            fake_webui.PanelScript().ui(is_img2img)
        tabs.append(tab)
    with gr.Blocks() as page:
        listed = gr.Dropdown(["small.safetensors"], elem_id="setting_sd_model_checkpoint")
        HOST.remember(listed, elem_id=listed.elem_id)
        for tab in tabs:
            tab.render()
    every: Any = page.fns
    events = [one for one in (every.values() if isinstance(every, dict) else every) if listed in one.inputs]
    return [list(one.fn(f"{name}.safetensors").values()) for name in ("small", "other") for one in events]


def _facts(component: Any) -> dict[str, Any]:
    names = ("label", "minimum", "maximum", "step", "elem_id", "webui_tooltip", "visible", "do_not_save_to_config")
    return {"kind": component.get_block_name(), **{name: getattr(component, name, None) for name in names}}


if __name__ == "__main__":
    main()
