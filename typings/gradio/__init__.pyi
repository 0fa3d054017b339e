"""gradio 3.41 and 4.40, as far as both agree and the panel uses them."""

from typing import Any

from gradio import context as context

__version__: str

def Warning(message: str) -> None: ...
def update(**changes: Any) -> Any: ...
def __getattr__(name: str) -> Any: ...
