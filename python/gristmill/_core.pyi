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
def matmul(
    packed: npt.NDArray[np.uint8],
    type_id: int,
    n_cols: int,
    x: npt.NDArray[np.float32],
    isa: str = "",
    mode: str = "auto",
) -> npt.NDArray[np.float32]: ...
def affine_rows(
    packed: npt.NDArray[np.uint8], type_id: int, n_cols: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32]]: ...
def dequantize_rows(blocks: npt.NDArray[np.uint8], type: str, y: npt.NDArray[np.float32]) -> None: ...
def supported_isas() -> list[str]: ...
def built_isas() -> list[str]: ...
