"""How much a type loses of a matrix: the error of its outputs over the outputs, both weighted by the inputs
seen.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gristmill import _core
from gristmill.gguf import GGUFFile, TensorInfo
from gristmill.messages import file_error
from gristmill.quants import format_named

_SAMPLED_VALUES = 1 << 18


def sample_rows(file: GGUFFile, tensor: TensorInfo) -> npt.NDArray[np.float32]:
    """Rows spread evenly over a matrix, float32 [n, n_cols], at most _SAMPLED_VALUES or one row."""
    n_cols = tensor.shape[-1]
    n_rows = tensor.n_elements // n_cols
    row_bytes = tensor.n_bytes // n_rows
    n = max(1, min(n_rows, _SAMPLED_VALUES // n_cols))
    raw = np.empty((n, row_bytes), np.uint8)
    fd = file.fileno(tensor.file_index)
    for i in range(n):
        data = os.pread(fd, row_bytes, tensor.offset + i * n_rows // n * row_bytes)
        if len(data) != row_bytes:
            raise file_error(file.paths[tensor.file_index], "became shorter while it was read")
        raw[i] = np.frombuffer(data, np.uint8)
    values = np.empty((n, n_cols), np.float32)
    _core.dequantize_rows(raw, tensor.type, values)
    return values


def output_power(rows: npt.NDArray[np.float32], channels: npt.NDArray[np.float32] | None) -> float:
    """Mean over ``rows`` of the square of their outputs: sum of h w^2 over the channels."""
    h = np.ones(rows.shape[1]) if channels is None else channels.astype(np.float64)
    return float((np.square(rows, dtype=np.float64) @ h).sum()) / len(rows)


def relative_errors(
    rows: npt.NDArray[np.float32],
    types: Sequence[str],
    channels: npt.NDArray[np.float32] | None,
    *,
    led: bool,
) -> list[float]:
    """For each type: sum of h dw^2 over sum of h w^2, where h (``channels``, [n_cols]) is the mean squared
    input and dw what quantizing moves a weight by. With inputs that are uncorrelated this is the squared
    error of the matrix's output over its square. ``led``: whether
    the quantizer is given ``channels`` too, as it is where an importance matrix goes with the file.
    """
    h = np.ones(rows.shape[1]) if channels is None else channels.astype(np.float64)
    whole = output_power(rows, channels) * len(rows)
    errors: list[float] = []
    for type in types:
        format = format_named(type)
        packed = np.empty((len(rows), format.row_bytes(rows.shape[1])), np.uint8)
        importance = channels[None, :] if led and channels is not None and format.kind != "float" else None
        _core.quantize_rows(rows, type, importance, packed)
        again = np.empty_like(rows)
        _core.dequantize_rows(packed, type, again)
        lost = float((np.square(again - rows, dtype=np.float64) @ h).sum())
        errors.append(lost / whole if whole > 0 else 0.0)
    return errors
