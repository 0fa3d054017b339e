from typing import Any

from numpy.typing import NDArray

def save_file(tensor_dict: dict[str, NDArray[Any]], filename: str, metadata: dict[str, str] | None = None) -> None: ...
