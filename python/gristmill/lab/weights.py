"""How far a file's weights are from a base's, tensor by tensor."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gristmill import _core
from gristmill.errors import UnsupportedModelError
from gristmill.gguf import GGUFFile, TensorInfo
from gristmill.messages import file_error, printable, quoted
from gristmill.quants import formats

Progress = Callable[[str, int, int], None]
"""Called with a tensor's name, the tensors done, and all there are."""

_PIECE_VALUES = 1 << 20
_LAYER = re.compile(r"blk\.(\d+)\.(.+?)(?:\.weight)?")


@dataclass(frozen=True)
class TensorError:
    """A tensor of the model against the base's; ``layer`` is None outside the layers.

    ``relative_rmse``: root mean square of the differences over that of the base's weights. ``max_error``: the
    largest difference, in units of the base's root mean square, at ``max_row`` and ``max_column``.
    """

    name: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    base_format: str
    format: str
    bits_per_weight: float
    relative_rmse: float
    max_error: float
    max_row: int
    max_column: int


def split_name(name: str) -> tuple[int | None, str]:
    """``(3, "attn_q")`` for ``blk.3.attn_q.weight``, ``(None, "output")`` for ``output.weight``."""
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name.removesuffix(".weight"))


def weight_errors(
    base: GGUFFile, other: GGUFFile, n_threads: int | None = None, progress: Progress | None = None
) -> list[TensorError]:
    """Compare all tensors, in the base's order; memory does not grow with the files.

    Raises:
        GGUFError: ``other`` lacks a tensor of the base, has one more or another shape, or became shorter.
        UnsupportedModelError: A tensor is in a format that cannot be read.
    """
    check_same_tensors(base, other)
    names = list(base.tensors)
    with ThreadPoolExecutor(n_threads or _core.default_thread_count(), "weights") as pool:
        done: list[TensorError] = []
        try:
            for error in pool.map(lambda name: _compare(base, other, name), names):
                done.append(error)
                if progress is not None:
                    progress(error.name, len(done), len(names))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return done


def check_same_tensors(base: GGUFFile, other: GGUFFile) -> None:
    """Raises GGUFError where the two are not files of one model, by their tensors."""
    of = printable(base.path.name)
    for name, tensor in base.tensors.items():
        theirs = other.tensors.get(name)
        if theirs is None:
            raise file_error(other.path, f"has no tensor {quoted(name)}, which {of} has")
        if theirs.shape != tensor.shape:
            raise file_error(
                other.path,
                f"tensor {quoted(name)} has shape {list(theirs.shape)}, but {list(tensor.shape)} in {of}",
            )
    more = next((name for name in other.tensors if name not in base.tensors), None)
    if more is not None:
        raise file_error(other.path, f"has a tensor {quoted(more)}, which {of} lacks")


def _compare(base: GGUFFile, other: GGUFFile, name: str) -> TensorError:
    mine, theirs = base.tensors[name], other.tensors[name]
    square_error = square = largest = 0.0
    at = (0, 0)
    for (first, a), (_, b) in zip(_rows(base, mine), _rows(other, theirs), strict=True):
        difference = np.subtract(b, a, dtype=np.float64)
        np.abs(difference, out=difference)
        i = int(difference.argmax())
        if difference.flat[i] > largest:
            largest = float(difference.flat[i])
            row, column = divmod(i, a.shape[1])
            at = (first + row, column)
        square_error += float(np.square(difference, out=difference).sum())
        square += float(np.square(a, dtype=np.float64).sum())
    rms = math.sqrt(square / mine.n_elements) if square else 0.0
    layer, kind = split_name(name)
    return TensorError(
        name=name,
        layer=layer,
        kind=kind,
        shape=tuple(mine.shape),
        base_format=mine.type,
        format=theirs.type,
        bits_per_weight=8 * theirs.n_bytes / mine.n_elements,
        # A tensor of zeros has no scale to measure by: any error in it is infinitely large.
        relative_rmse=math.sqrt(square_error / square) if square else math.inf if square_error else 0.0,
        max_error=largest / rms if rms else math.inf if largest else 0.0,
        max_row=at[0],
        max_column=at[1],
    )


def _rows(file: GGUFFile, tensor: TensorInfo) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Pieces of a tensor: the first row, and float32 ``[rows, columns]``."""
    if tensor.type not in {f.name for f in formats()}:
        raise UnsupportedModelError(
            f"{printable(str(file.path))}: tensor {quoted(tensor.name)} is {tensor.type}, "
            "which cannot be read"
        )
    n_columns = tensor.shape[-1] if tensor.shape else 1
    n_rows = tensor.n_elements // n_columns
    row_bytes = tensor.n_bytes // n_rows
    step = max(1, _PIECE_VALUES // n_columns)
    for first in range(0, n_rows, step):
        n = min(step, n_rows - first)
        raw = read_bytes(file, tensor, first * row_bytes, n * row_bytes)
        values = np.empty((n, n_columns), np.float32)
        _core.dequantize_rows(raw.reshape(n, row_bytes), tensor.type, values)
        yield first, values


def read_bytes(file: GGUFFile, tensor: TensorInfo, offset: int, n: int) -> NDArray[np.uint8]:
    """``n`` bytes of a tensor from ``offset`` on, read and not mapped: a file that is cut is an error."""
    buffer = np.empty(n, np.uint8)
    view, at = buffer.data, tensor.offset + offset
    while view:
        got = os.preadv(file.fileno(tensor.file_index), [view], at)
        if not got:
            raise file_error(file.paths[tensor.file_index], "became shorter while it was read")
        view, at = view[got:], at + got
    return buffer
