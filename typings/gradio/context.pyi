from typing import Any

class Page:
    blocks: dict[int, Any]

class Context:
    block: Any
    root_block: Page | None
