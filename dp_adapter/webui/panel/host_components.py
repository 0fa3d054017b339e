"""The host's own components that the panel reads: picture size, img2img's pictures and the choice of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dp_adapter.webui.panel.gradio_compat import same_page

# In the order of img2img's tabs (img2img, sketch, inpaint, inpaint sketch, inpaint upload).
INIT_IDS = ("img2img_image", "img2img_sketch", "img2maskimg", "inpaint_sketch", "img_inpaint_base")
UPLOADED_MASK = "img_inpaint_mask"
_SIZES = tuple(f"{tab}_{side}" for tab in ("txt2img", "img2img") for side in ("width", "height"))
_WANTED = frozenset({*INIT_IDS, UPLOADED_MASK, *_SIZES})
_FOREGROUND = "logical_image_foreground"
_BACKGROUND = "logical_image_background"


class HostComponents:
    """Remembers components by their element id while the host builds its page."""

    def __init__(self) -> None:
        self._components: dict[str, Any] = {}
        self._canvas = ""
        self._checkpoint_panels: list[Callable[[Any], Any]] = []

    def start_page(self) -> None:
        """For the host's ``on_before_ui``: the panels of the page before are gone."""
        self._checkpoint_panels.clear()

    def on_checkpoint(self, wire: Callable[[Any], Any]) -> None:
        """Has a panel wire the host's list of checkpoints, which every host builds after its tabs."""
        self._checkpoint_panels.append(wire)

    def remember(self, component: Any, **options: Any) -> None:
        """For the host's ``on_after_component``."""
        name = options.get("elem_id") or ""
        if _lists_checkpoints(name, options):
            for wire in self._checkpoint_panels:
                wire(component)
        if name in _WANTED:
            self._components[name] = component
            self._canvas = name if name in INIT_IDS else ""
            self._components.pop(f"{name}:foreground", None)
            return
        # Forge's canvas is an HTML block, followed by two text boxes that hold the layers.
        classes = options.get("elem_classes") or ()
        if self._canvas and _FOREGROUND in classes:
            self._components[f"{self._canvas}:foreground"] = component
        elif self._canvas and _BACKGROUND in classes:
            self._components[self._canvas] = component
            self._canvas = ""

    def find(self, name: str) -> Any | None:
        """The component, where it is on the page that is being built."""
        component = self._components.get(name)
        return component if component is not None and same_page(component) else None


def _lists_checkpoints(name: str, options: Mapping[str, Any]) -> bool:
    """Forge's list has no id; neo's of the VAE has the same class, and the refiner's the same label."""
    unnamed = options.get("label") == "Checkpoint" and "model_selection" in (options.get("elem_classes") or ())
    return name == "setting_sd_model_checkpoint" or unnamed


HOST = HostComponents()
"""The one page that the host builds at a time."""
