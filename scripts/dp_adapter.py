"""Entry point: the WebUI executes every file in this folder, at start and at each "Reload UI"."""

from dp_adapter.webui.script import DPAdapterScript, register

__all__ = ["DPAdapterScript"]
register()
