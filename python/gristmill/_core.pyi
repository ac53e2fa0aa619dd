"""Types of the compiled part."""

import numpy as np
import numpy.typing as npt

def formats() -> list[tuple[str, int, int, int, str, float]]: ...
def quantize_rows(
    x: npt.NDArray[np.float32],
    type: str,
    importance: npt.NDArray[np.float32] | None,
    blocks: npt.NDArray[np.uint8],
) -> None: ...
def dequantize_rows(blocks: npt.NDArray[np.uint8], type: str, y: npt.NDArray[np.float32]) -> None: ...
