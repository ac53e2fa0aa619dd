"""Block formats from Python: float32 arrays to the bytes of a GGUF tensor and back, and products with them.

The formats and their arithmetic are in ``csrc/formats``; this module checks arguments, explains what is wrong
with them, and walks over the rows so that no converted copy of a whole tensor is ever held.
"""

from __future__ import annotations

import difflib
import functools
import math
import operator
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gristmill import _core
from gristmill.errors import ArgumentError, GristmillWarning

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_CHUNK_VALUES = 1 << 20


@dataclass(frozen=True, slots=True)
class Format:
    """A block format: ``block_size`` weights in ``type_size`` bytes.

    ``kind`` is "float" (one number a weight) or "affine" (integers with shared scales). A round trip moves no
    weight of a block by more than ``max_relative_error`` times the block's largest magnitude, as long as no
    importance is given and the block's numbers in half precision are normal ones.
    """

    name: str
    type_id: int
    block_size: int
    type_size: int
    kind: str
    max_relative_error: float

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of ``n`` weights. ArgumentError where ``n`` is not a multiple of ``block_size``."""
        if n % self.block_size:
            raise ArgumentError(
                f"{self.name} stores {self.block_size} values a block: "
                f"a row needs a multiple of {self.block_size} values, got {n}"
            )
        return n // self.block_size * self.type_size


@functools.cache
def _registry() -> dict[str, Format]:
    return {row[0]: Format(*row) for row in _core.formats()}


def formats() -> list[Format]:
    """Every block format of this build, in the order of the registry."""
    return list(_registry().values())


def format_named(name: str) -> Format:
    """The format that GGUF spells ``name``; ArgumentError with the nearest and all known names otherwise."""
    known = _registry()
    if isinstance(name, str) and name in known:
        return known[name]
    near = difflib.get_close_matches(str(name).upper(), known, n=1, cutoff=0.0)
    raise ArgumentError(f"unknown type {name!r}, did you mean {near[0]!r}? Known types: {', '.join(known)}")


def quantize(array: npt.ArrayLike, type: str, importance: npt.ArrayLike | None = None) -> Bytes:
    """Pack ``array`` into the blocks of a format.

    Args:
        array: real numbers, any shape ``[..., k]``, ``k`` a multiple of the block size. Converted to float32.
        type: a name as GGUF spells it, for example "Q4_K".
        importance: how much the error of each weight counts, >= 0: ``[k]`` for all rows (mean squared
            activations), or the shape of ``array``. The float formats have no use for it and warn.

    Returns:
        uint8 ``[..., k / block_size * type_size]``: ``array``'s shape with the last axis in bytes.

    Raises:
        ArgumentError: unknown type; a row that does not divide into blocks; a NaN, or an infinity where the
            format has none, by row and column; importance of another shape, negative or not finite.

    Finite values beyond a format's range saturate in the affine formats (where a scale would pass 65504); F16
    makes them infinite and warns. Without importance Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 are the bytes of ggml's
    reference quantizers; the other formats search for scales of less weighted error than those find.
    """
    format = format_named(type)
    values = _real(array, "array")
    if values.ndim == 0:
        raise ArgumentError("array must have at least one axis, got a single number")
    k = values.shape[-1]
    n_rows, row_bytes = math.prod(values.shape[:-1]), format.row_bytes(k)
    weights = None if importance is None else _importance(importance, values.shape, format)
    values = values.reshape(n_rows, k)
    blocks = np.empty((n_rows, row_bytes), np.uint8)
    n_infinite = 0
    for rows in _chunks(n_rows, k):
        chunk = _to_float32(values[rows])
        _check_storable(values[rows], chunk, rows.start, format)
        part = weights if weights is None or len(weights) == 1 else weights[rows]
        _core.quantize_rows(chunk, type, part, blocks[rows])
        if format.kind == "float":
            _core.dequantize_rows(blocks[rows], type, chunk := np.empty_like(chunk))
            n_infinite += int(np.count_nonzero(np.isfinite(values[rows]) & np.isinf(chunk)))
    if n_infinite:
        message = f"{n_infinite} finite values became infinite: they are beyond the range of {format.name}"
        warnings.warn(message, GristmillWarning, stacklevel=2)
    return blocks.reshape(*np.shape(array)[:-1], row_bytes)


def dequantize(
    packed: Bytes | bytes | bytearray | memoryview, type: str, shape: int | tuple[int, ...]
) -> Floats:
    """Unpack blocks to float32, bit-equal to ``gguf.quants.dequantize``.

    Args:
        packed: uint8 array of any shape, or a bytes-like object, that holds exactly the tensor's bytes.
        type: a name as GGUF spells it.
        shape: of the result, rows first; the last axis is a multiple of the block size.

    Raises:
        ArgumentError: unknown type; a row that does not divide into blocks; another number of bytes than
            ``shape`` needs.
    """
    sizes = _shape(shape)
    rows = _packed_rows(packed, format_named(type), sizes)
    y = np.empty((len(rows), sizes[-1]), np.float32)
    _core.dequantize_rows(rows, type, y)
    return y.reshape(sizes)


def matmul(
    packed: Bytes | bytes | bytearray | memoryview,
    type: str,
    shape: tuple[int, int],
    x: npt.ArrayLike,
    *,
    isa: str = "",
    mode: str = "auto",
) -> Floats:
    """Multiply ``x`` with a packed matrix by the kernels that run models on the CPU: ``y = x @ weights.T``.

    Args:
        packed: the bytes of the matrix, as for ``dequantize``.
        type: a name as GGUF spells it.
        shape: ``(m, k)`` of the matrix, as GGUF tensors are stored: one row an output.
        x: real numbers ``[n, k]``, or ``[k]`` for one row. Converted to float32.
        isa: an instruction set of ``_core.supported_isas()``; empty for the one that GRISTMILL_ISA names, or
            the best.
        mode: "decode" for the kernels that serve single tokens (eight rows of ``x`` share a pass over the
            weights), "prefill" for those that serve whole prompts, "precise_decode" and "precise" for those
            that serve them under ``load(precise=True)``, "auto" for the one of these two that up to eight
            rows, or more, are multiplied with.

    Returns:
        float32 ``[n, m]``, or ``[m]``. Where the weights are quantized, ``x`` is rounded to 15 bits a value,
        with one scale per 32 values or per row: the error of each product is at most ``peak / 32512`` times
        the weight's magnitude. In "decode" and "prefill" it may be rounded to 8 bits, but for a few values of
        each row that are far larger than their neighbours. A NaN or an infinity in a row of ``x`` makes its
        row of the result not finite.

    Raises:
        ArgumentError: unknown type, ``isa`` or ``mode``; a row that does not divide into blocks; bytes or
            ``x`` that do not fit ``shape``.
        DeviceError: an ``isa`` that this machine does not have.
    """
    format = format_named(type)
    sizes = _shape(shape)
    if len(sizes) != 2:
        raise ArgumentError(f"shape of the matrix must be (m, k), got {shape!r}")
    rows = _packed_rows(packed, format, sizes)
    values = _real(x, "x")
    if values.ndim not in {1, 2} or values.shape[-1] != sizes[1]:
        raise ArgumentError(f"x must have shape ({sizes[1]},) or (n, {sizes[1]}), got {values.shape}")
    y = _core.matmul(rows, format.type_id, sizes[1], _to_float32(np.atleast_2d(values)), isa, mode)
    return y if values.ndim == 2 else y[0]


def _packed_rows(
    packed: Bytes | bytes | bytearray | memoryview, format: Format, sizes: tuple[int, ...]
) -> Bytes:
    """The bytes of a tensor as uint8 [rows, row_bytes]; ArgumentError where they do not fit ``sizes``."""
    n_rows, row_bytes = math.prod(sizes[:-1]), format.row_bytes(sizes[-1])
    try:
        raw = packed if isinstance(packed, np.ndarray) else np.frombuffer(packed, np.uint8)
    except TypeError as error:
        raise ArgumentError(f"packed must be a uint8 array or bytes: {error}") from None
    if raw.dtype != np.uint8:
        raise ArgumentError(f"packed must be uint8 or bytes, got an array of {raw.dtype}")
    if raw.size != n_rows * row_bytes:
        raise ArgumentError(
            f"{format.name} of shape {sizes} takes {n_rows * row_bytes} bytes "
            f"({n_rows} rows of {row_bytes}), got {raw.size}"
        )
    return np.ascontiguousarray(raw).reshape(n_rows, row_bytes)


def _chunks(n_rows: int, k: int) -> Iterator[slice]:
    """Slices of the row axis, each of about _CHUNK_VALUES values: small copies, room to interrupt."""
    step = max(1, _CHUNK_VALUES // max(1, k))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def _to_float32(values: npt.NDArray[np.number]) -> Floats:
    with np.errstate(over="ignore"):
        return np.require(values, np.float32, ["C", "A"])


def _check_storable(given: npt.NDArray[np.number], chunk: Floats, first_row: int, format: Format) -> None:
    """ArgumentError for the first value of ``chunk`` (``given`` in float32) that ``format`` cannot hold."""
    refused = np.isnan(chunk) if format.kind == "float" else ~np.isfinite(chunk)
    if refused.any():
        row, column = (int(i) for i in np.argwhere(refused)[0])
        raise ArgumentError(
            f"array holds {given[row, column]} at row {first_row + row}, column {column}: "
            f"{format.name} needs {'numbers' if format.kind == 'float' else 'finite float32 numbers'}"
        )


def _importance(importance: npt.ArrayLike, shape: tuple[int, ...], format: Format) -> Floats | None:
    """float32 [1, k] or [rows, k]; None for a format that takes no part in it."""
    weights = _real(importance, "importance")
    if weights.shape not in {shape, shape[-1:]}:
        raise ArgumentError(
            f"importance must have shape {shape[-1:]}, one number a column, or {shape}; got {weights.shape}"
        )
    rows = _to_float32(weights).reshape(math.prod(weights.shape[:-1]), shape[-1])
    wrong = ~(np.isfinite(rows) & (rows >= 0))
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        where = f"row {row}, column {column}" if weights.ndim > 1 else f"column {column}"
        raise ArgumentError(f"importance must be finite and >= 0, got {rows[row, column]} at {where}")
    if format.kind == "float":
        message = f"importance has no effect: {format.name} rounds each value by itself"
        warnings.warn(message, GristmillWarning, stacklevel=3)
        return None
    return rows


def _real(array: npt.ArrayLike, what: str) -> npt.NDArray[np.number]:
    """The array as it is, if its numbers are real."""
    try:
        values = np.asarray(array)
    except ValueError as error:
        raise ArgumentError(f"{what} must be an array of real numbers: {error}") from None
    if values.dtype.kind not in "fiu":
        raise ArgumentError(f"{what} must be an array of real numbers, got {values.dtype}")
    return values


def _shape(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    """The shape as a tuple of ints, at least one axis, none negative."""
    try:
        sizes = tuple(operator.index(n) for n in (shape if hasattr(shape, "__iter__") else (shape,)))
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 0:
        raise ArgumentError(f"shape must be one or more sizes >= 0, got {shape!r}")
    return sizes
