from typing import Any

InputAccordion: Any
ToolButton: Any
