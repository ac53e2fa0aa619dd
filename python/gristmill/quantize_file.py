"""Quantizing a GGUF file: every tensor into the type that a mix or the caller gives it.

>>> quantize_file(Path("model-F16.gguf"), Path("model-Q4_K_M.gguf"), "Q4_K_M")  # doctest: +SKIP

Tensors stream through in pieces of a few megabytes, so memory does not grow with the file, and what is
written takes its name only when it is whole.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from gristmill import _core
from gristmill.errors import Error, GristmillWarning
from gristmill.gguf import GGUFFile
from gristmill.gguf_header import DEFAULT_ALIGNMENT
from gristmill.gguf_writer import GGUFWriter, copy_metadata, encode_value
from gristmill.messages import file_error, printable, quoted
from gristmill.quantizing.mixes import MIXES, find_mix
from gristmill.quantizing.plan import Options, PlannedTensor, make_plan, parse_tensor_types

if TYPE_CHECKING:
    from gristmill.imatrix import Imatrix

__all__ = ["Progress", "QuantizeReport", "TensorReport", "quantize_file"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a tensor's name, the source bytes done, and all of them."""

QUANTIZATION_VERSION = 2  # ggml's, of the block layouts
_PIECE_BYTES = 2 << 20  # of source: a few hundredths of a second, the longest that Ctrl-C waits
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class TensorReport:
    """A tensor: the type it had and has, and why: "mix", "override", "kept", or "fallback" where its rows do
    not divide into the mix's own blocks."""

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    n_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """What :func:`quantize_file` did. ``n_bytes`` counts whole files, ``bits_per_weight`` tensors alone."""

    source: Path
    targets: tuple[Path, ...]
    type: str
    tensors: tuple[TensorReport, ...]
    n_bytes_source: int
    n_bytes: int
    n_weights: int
    bits_per_weight: float
    seconds: float


def quantize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    type: str,
    *,
    imatrix: Imatrix | str | os.PathLike[str] | None = None,
    tensor_types: Sequence[str | tuple[str, str]] = (),
    n_threads: int | None = None,
    requantize: bool = False,
    progress: Progress | None = None,
    output_type: str | None = None,
    embedding_type: str | None = None,
    leave_output: bool = False,
    pure: bool = False,
    exact_types: dict[str, str] | None = None,
    split_max_bytes: int | None = None,
    dry_run: bool = False,
) -> QuantizeReport:
    """Write ``source`` (all parts of it, if it is split) as ``target``, its matrices in the types of a mix.

    Args:
        type: a mix: Q4_K_M, Q8_0, F16, ...; in any case of letters.
        imatrix: how much each input channel counts (:mod:`gristmill.imatrix`), or the file that says so.
        tensor_types: ``PATTERN=TYPE`` or pairs; the first pattern found in a tensor's name gives its type.
        n_threads: default, the physical cores.
        requantize: convert tensors that are quantized already.
        output_type, embedding_type: of the output matrix and of the token embedding.
        leave_output: keep the output matrix as it is.
        pure: the mix's base format for every matrix.
        exact_types: types of tensors by name, before all else (what ``allocate`` chose).
        split_max_bytes: write parts ``NAME-00001-of-0000N.gguf`` with at most so many bytes of tensors each.
        dry_run: write nothing; the report says what would be.

    Raises:
        ArgumentError: unknown type; a type that cannot hold a tensor's rows; ``target`` is ``source``.
        GGUFError: ``source`` is malformed, or holds NaN or infinity (the tensor and the place are named).
        UnsupportedModelError: a tensor is quantized already, or in a format that cannot be read.
        OSError: writing failed, for example on a full disk.

    Nothing is left behind by an error or an interrupt. The result does not depend on ``n_threads``.
    """
    start = time.monotonic()
    options = Options(
        tensor_types=parse_tensor_types(tensor_types),
        exact_types=exact_types or {},
        output_type=output_type,
        embedding_type=embedding_type,
        leave_output=leave_output,
        pure=pure,
        requantize=requantize,
    )
    mix = find_mix(type)
    with GGUFFile.open(source) as file:
        importance = _load_imatrix(imatrix)
        plan = make_plan(file, mix, options, has_imatrix=importance is not None)
        if importance is not None:
            importance.check_fits(file)
        parts = _split(plan, split_max_bytes)
        targets = _part_names(Path(target), len(parts))
        _refuse_own_source(file, targets)
        n_bytes = sum(tensor.new.n_bytes for tensor in plan)
        if not dry_run:
            n_bytes = _write(file, mix, parts, targets, importance, n_threads, progress)
        n_weights = sum(tensor.new.n_weights for tensor in plan)
        return QuantizeReport(
            source=file.path,
            targets=tuple(targets),
            type=mix,
            tensors=tuple(
                TensorReport(
                    t.new.name, t.new.shape, t.source.type, t.new.type, t.new.n_bytes,
                    t.reason if t.converts or t.reason != "override" else "kept",
                )
                for t in plan
            ),
            n_bytes_source=sum(file.file_sizes),
            n_bytes=n_bytes,
            n_weights=n_weights,
            bits_per_weight=8 * sum(t.new.n_bytes for t in plan) / max(1, n_weights),
            seconds=time.monotonic() - start,
        )  # fmt: skip


def _load_imatrix(imatrix: Imatrix | str | os.PathLike[str] | None) -> Imatrix | None:
    if imatrix is None:
        return None
    from gristmill.imatrix import Imatrix

    return imatrix if isinstance(imatrix, Imatrix) else Imatrix.load(imatrix)


def _refuse_own_source(file: GGUFFile, targets: Sequence[Path]) -> None:
    for target in targets:
        if any(target.exists() and target.samefile(path) for path in file.paths):
            raise file_error(target, "is the file to read from; give the result another name")


def _split(plan: list[PlannedTensor], max_bytes: int | None) -> list[list[PlannedTensor]]:
    """The plan in parts, each with at least one tensor and otherwise at most ``max_bytes`` of them."""
    if max_bytes is None:
        return [plan]
    parts: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in plan:
        if parts[-1] and size + tensor.new.n_bytes > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.new.n_bytes
    return parts


def _part_names(target: Path, n_parts: int) -> list[Path]:
    if n_parts == 1:
        return [target]
    stem = target.name.removesuffix(".gguf")
    return [target.with_name(f"{stem}-{i + 1:05}-of-{n_parts:05}.gguf") for i in range(n_parts)]


def _metadata(
    file: GGUFFile, mix: str, importance: Imatrix | None, part: int, parts: list[list[PlannedTensor]]
) -> dict[str, bytes]:
    split = {
        "split.no": encode_value("uint16", part),
        "split.count": encode_value("uint16", len(parts)),
        "split.tensors.count": encode_value("int32", sum(map(len, parts))),
    }
    if part > 0:
        return split
    more = {
        "general.quantization_version": encode_value("uint32", QUANTIZATION_VERSION),
        "general.file_type": encode_value("uint32", MIXES[mix].file_type),
    }
    if importance is not None:
        more |= importance.provenance()
    if len(parts) > 1:
        more |= split
    return copy_metadata(file.metadata, without=_SPLIT_KEYS, more=more)


def _write(
    file: GGUFFile,
    mix: str,
    parts: list[list[PlannedTensor]],
    targets: list[Path],
    importance: Imatrix | None,
    n_threads: int | None,
    progress: Progress | None,
) -> int:
    alignment = file.alignment if "general.alignment" in file.metadata.file_keys else DEFAULT_ALIGNMENT
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                GGUFWriter(
                    target,
                    _metadata(file, mix, importance, i, parts),
                    [tensor.new for tensor in part],
                    alignment if i == 0 else DEFAULT_ALIGNMENT,
                )
            )
            for i, (target, part) in enumerate(zip(targets, parts, strict=True))
        ]
        jobs = (
            _Job(file, writer, tensor, importance, first, n)
            for writer, part in zip(writers, parts, strict=True)
            for tensor in part
            for first, n in _pieces(tensor)
        )
        total = sum(tensor.source.n_bytes for part in parts for tensor in part)
        _run(jobs, n_threads or _core.default_thread_count(), total, progress)
        _commit(writers)
        return sum(writer.n_bytes for writer in writers)


def _commit(writers: list[GGUFWriter]) -> None:
    """Gives all parts their names; where that is not to be, none."""
    try:
        for writer in writers:
            writer.commit()
    except BaseException:
        for writer in writers:
            if writer.committed and len(writers) > 1:
                writer.target.unlink(missing_ok=True)
        raise


def _pieces(tensor: PlannedTensor) -> Iterator[tuple[int, int]]:
    """(first row, rows) of pieces that lie within one matrix, since experts have importances of their own."""
    n_cols, rows_each = tensor.new.shape[-1], tensor.new.shape[-2] if len(tensor.new.shape) > 1 else 1
    n_rows = tensor.new.n_weights // n_cols
    step = max(1, _PIECE_BYTES * n_rows // tensor.source.n_bytes)
    for matrix in range(0, n_rows, rows_each):
        for first in range(matrix, matrix + rows_each, step):
            yield first, min(step, matrix + rows_each - first)


@dataclass(frozen=True, slots=True)
class _Job:
    file: GGUFFile
    writer: GGUFWriter
    tensor: PlannedTensor
    importance: Imatrix | None
    first_row: int
    n_rows: int

    @property
    def n_bytes(self) -> int:
        """Of the source."""
        return self.n_rows * self._row_bytes(self.tensor.source.n_bytes)

    def _row_bytes(self, tensor_bytes: int) -> int:
        new = self.tensor.new
        return tensor_bytes * new.shape[-1] // new.n_weights

    def run(self) -> int:
        """Reads, converts and writes the rows; returns how many finite weights became infinite."""
        source, new = self.tensor.source, self.tensor.new
        raw = self._read(source.offset + self.first_row * self._row_bytes(source.n_bytes), self.n_bytes)
        at = self.writer.offsets[new.name] + self.first_row * self._row_bytes(new.n_bytes)
        if not self.tensor.converts:
            self.writer.write_at(at, raw.data)
            return 0
        packed = np.empty(self.n_rows * self._row_bytes(new.n_bytes), np.uint8)
        n_cols = new.shape[-1]
        refused, overflowed = _core.convert_rows(raw, source.type, new.type, n_cols, self._channels(), packed)
        if refused >= 0:
            row, column = divmod(refused, n_cols)
            raise self._not_finite(raw, self.first_row + row, row, column)
        self.writer.write_at(at, packed.data)
        return overflowed

    def _read(self, offset: int, n_bytes: int) -> npt.NDArray[np.uint8]:
        buffer = np.empty(n_bytes, np.uint8)
        view = buffer.data
        fd, path = (
            self.file.fileno(self.tensor.source.file_index),
            self.file.paths[self.tensor.source.file_index],
        )
        while view:
            try:
                done = os.preadv(fd, [view], offset)
            except OSError as error:
                raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
            if not done:
                raise file_error(path, "became shorter while it was read")
            view, offset = view[done:], offset + done
        return buffer

    def _channels(self) -> npt.NDArray[np.float32] | None:
        if self.importance is None:
            return None
        shape = self.tensor.new.shape
        return self.importance.channels(
            self.tensor.new.name, self.first_row // shape[-2] if len(shape) > 2 else 0
        )

    def _not_finite(self, raw: npt.NDArray[np.uint8], row: int, piece_row: int, column: int) -> Error:
        source = self.tensor.source
        n_cols, row_bytes = source.shape[-1], self._row_bytes(source.n_bytes)
        values = np.empty((1, n_cols), np.float32)
        line = raw[piece_row * row_bytes : (piece_row + 1) * row_bytes].reshape(1, row_bytes)
        _core.dequantize_rows(line, source.type, values)
        return file_error(
            self.file.paths[source.file_index],
            f"tensor {quoted(source.name)} holds {values[0, column]} at row {row}, column {column}",
        )


def _run(jobs: Iterator[_Job], n_threads: int, total: int, progress: Progress | None) -> None:
    """Runs all jobs, a few more than threads at a time. The first error ends the rest."""
    done = overflowed = 0
    pending: dict[Future[int], _Job] = {}
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="quantize")
    try:
        more = True
        while more or pending:
            while more and len(pending) < 2 * n_threads:
                job = next(jobs, None)
                if job is None:
                    more = False
                else:
                    pending[pool.submit(job.run)] = job
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                job = pending.pop(future)
                overflowed += future.result()
                done += job.n_bytes
                if progress is not None:
                    progress(job.tensor.new.name, done, total)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if overflowed:
        warnings.warn(
            f"{printable(str(overflowed))} finite weights became infinite: they are beyond the range of F16",
            GristmillWarning,
            stacklevel=3,
        )
