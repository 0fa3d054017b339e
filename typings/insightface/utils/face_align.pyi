import numpy as np
from numpy.typing import NDArray

def norm_crop(img: NDArray[np.uint8], landmark: NDArray[np.float32], image_size: int = 112) -> NDArray[np.uint8]: ...
