"""Random valid blocks of any format, written as bytes: no quantizer is involved, so gigabytes take seconds.

Every bit of the codes is random, which also reaches codes that quantizers never write (-128 in Q8_0, say) and
that kernels must nevertheless get right. Only the float16 scales are chosen, for weights of a given spread.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Scales:
    """Where a block holds its float16 scale, and the float16 minimum that goes with it.

    ``centre`` is what the minimum is in units of the scale for the block's mean to be zero.
    """

    scale: int
    minimum: int | None = None
    centre: float = 0.0


# Positive centres: the format subtracts its minimum (K-quants); the mean of q is 1.5, 7.5 or 15.5 either way.
_SCALES = {
    "Q4_0": _Scales(0),
    "Q4_1": _Scales(0, 2, -7.5),
    "Q5_0": _Scales(0),
    "Q5_1": _Scales(0, 2, -15.5),
    "Q8_0": _Scales(0),
    "Q2_K": _Scales(80, 82, 1.5),
    "Q3_K": _Scales(108),
    "Q4_K": _Scales(0, 2, 7.5),
    "Q5_K": _Scales(0, 2, 15.5),
    "Q6_K": _Scales(208),
    "IQ4_NL": _Scales(0),
    "IQ4_XS": _Scales(0),
}
# Bits of the mantissa, bias of the exponent, unsigned integer of the same size.
_FLOATS = {"F32": (23, 127, np.uint32), "F16": (10, 15, np.uint16), "BF16": (7, 127, np.uint16)}
# Root mean square of +-m * 2**k with m uniform in [1, 2) and k uniform in {0, 1, 2, 3}.
_FLOAT_RMS = float(np.sqrt(7 / 3 * (1 + 4 + 16 + 64) / 4))

FORMATS = (*_FLOATS, *_SCALES)


def block_size(name: str) -> tuple[int, int]:
    """Weights and bytes of one block of the format."""
    size, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    return int(size), int(n_bytes)


def row_bytes(name: str, n_cols: int) -> int:
    """Bytes of a row of ``n_cols`` weights; ValueError where rows do not divide into whole blocks."""
    size, n_bytes = block_size(name)
    if n_cols % size:
        raise ValueError(f"{name}: rows of {n_cols} weights are no multiple of {size}")
    return n_cols // size * n_bytes


@functools.cache
def _unit_rms(name: str) -> float:
    """Root mean square of the weights of random blocks whose scale is one, measured with the gguf package."""
    rng = np.random.default_rng(0)
    _, n_bytes = block_size(name)
    blocks = rng.integers(0, 256, (4096, n_bytes), dtype=np.uint8)
    _write_scales(name, blocks, np.ones(len(blocks), np.float32))
    weights = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
    return float(np.sqrt(np.mean(np.square(weights, dtype=np.float64))))


def _write_scales(name: str, blocks: Bytes, scale: npt.NDArray[np.float32]) -> None:
    where = _SCALES[name]

    def field(offset: int) -> npt.NDArray[np.float16]:
        itemsize = blocks.shape[1]
        dtype = np.dtype({"names": ["x"], "formats": ["<f2"], "offsets": [offset], "itemsize": itemsize})
        return blocks.reshape(-1).view(dtype)["x"]

    field(where.scale)[:] = scale
    if where.minimum is not None:
        field(where.minimum)[:] = scale * np.float32(where.centre)


def random_blocks(name: str, n_rows: int, n_cols: int, rng: np.random.Generator, std: float) -> Bytes:
    """Random weights as a file holds them, uint8 [n_rows, row_bytes].

    Their root mean square is ``std`` (float formats: within a factor of 1.42 of it), their mean is near zero.
    """
    length = row_bytes(name, n_cols)
    n_bytes = n_rows * length
    raw = rng.integers(0, 2**64, -(-n_bytes // 8), dtype=np.uint64).view(np.uint8)[:n_bytes]
    if name in _FLOATS:
        mantissa, bias, unsigned = _FLOATS[name]
        bits = raw.view(unsigned)
        # A random sign, a random mantissa, two random bits of exponent.
        bits &= unsigned(1 << (8 * bits.itemsize - 1) | (4 << mantissa) - 1)
        bits += unsigned((bias + round(np.log2(std / _FLOAT_RMS))) << mantissa)
        return raw.reshape(n_rows, length)
    blocks = raw.reshape(-1, block_size(name)[1])
    # Scales differ from block to block, so that a kernel which takes a neighbour's is found out.
    scale = rng.random(len(blocks), dtype=np.float32)
    scale += 0.5
    scale *= np.float32(std / _unit_rms(name))
    # Random signs: the mean of codes that are not symmetric (Q4_0: -8..7) would else add up along a row.
    np.negative(scale, out=scale, where=(blocks[:, -1] & 1).astype(bool))
    _write_scales(name, blocks, scale)
    return raw.reshape(n_rows, length)
