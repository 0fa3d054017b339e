from typing import Any

class Page:
    blocks: dict[int, Any]

class Context:
    root_block: Page | None
