"""The WebUIs' own package; what is not in a stub of its own is untyped."""

from typing import Any

def __getattr__(name: str) -> Any: ...
