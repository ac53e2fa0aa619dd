"""The kernels of each block format alone, beside what the machine can do at most.

Three kinds of work for each format: unpacking to float32, the matrix product of one token (decode), and that
of a whole prompt (prefill). Weights are random and do not fit in a cache.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gristmill import _core
from gristmill.bench_report import limits_line, records_as_csv, records_as_json
from gristmill.errors import ArgumentError
from gristmill.limits import Limits, measure_limits
from gristmill.quants import Format, format_named, formats

ROWS, COLUMNS = 4096, 4096
KERNELS = ("dequantize", "decode", "prefill")
_CYCLED_BYTES = 256 << 20  # copies of a product's weights, more than any cache holds
_DISTINCT_ROWS = 64  # quantized once and repeated: blocks are random, and searching for scales is slow

Progress = Callable[[str, int, int], None]
"""Called with what runs now, the measurements that are done, and all there are."""


def peak_of(name: str, kernel: str, limits: Limits) -> float:
    """1e9 operations a second of what a format's products are made of in "prefill" or "decode"."""
    format = format_named(name)
    mode = "prefill" if kernel == "prefill" else "decode"
    return limits.gop_s_of(_core.arithmetic(limits.isa, format.type_id, mode))


@dataclass(frozen=True)
class KernelResult:
    """One kernel on one format; ``seconds`` is the median call.

    ``gb_per_s`` counts the packed weights, for "dequantize" also the float32 that are written. ``gop_per_s``
    counts a multiply-add as two.
    """

    format: str
    kernel: str
    rows: int
    columns: int
    n_tokens: int
    seconds: float
    gb_per_s: float
    gop_per_s: float
    limits: Limits

    @property
    def share_of_bandwidth(self) -> float:
        """``gb_per_s`` over what the threads can read."""
        return self.gb_per_s / self.limits.read_gb_s

    @property
    def share_of_peak(self) -> float:
        """``gop_per_s`` over what the threads can multiply with the instruction that serves the format."""
        return self.gop_per_s / peak_of(self.format, self.kernel, self.limits)

    @property
    def bound(self) -> str:
        """The limit that is nearer: "memory" or "arithmetic"."""
        return "memory" if self.share_of_bandwidth >= self.share_of_peak else "arithmetic"

    @property
    def share(self) -> float:
        """The share of the limit that is nearer."""
        return max(self.share_of_bandwidth, self.share_of_peak)

    def to_dict(self) -> dict[str, Any]:
        """One flat record."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "limits"}
        return record | {
            "bound": self.bound,
            "share": self.share,
            "isa": self.limits.isa,
            "n_threads": self.limits.n_threads,
            "limit_read_gb_s": self.limits.read_gb_s,
            "limit_int8_gop_s": self.limits.int8_gop_s,
            "limit_float32_gop_s": self.limits.float32_gop_s,
            "limit_bfloat16_gop_s": self.limits.bfloat16_gop_s,
        }


def bench_kernels(
    names: Sequence[str] = (),
    *,
    n_threads: int | None = None,
    n_prompt: int = 512,
    seconds: float = 0.5,
    isa: str = "",
    rows: int = ROWS,
    columns: int = COLUMNS,
    limit_seconds: float = 0.2,
    progress: Progress | None = None,
) -> Iterator[KernelResult]:
    """Measure unpacking and products of each format, one result after the other.

    The limits are measured before each format, and a result has the best until then: pass all results to
    :func:`at_best_limits` in the end.

    Args:
        names: Formats; all by default.
        n_threads: Threads that work at once; the physical cores by default.
        n_prompt: Tokens of the prefill product.
        seconds: For each measurement.
        isa: Instruction set; the one that GRISTMILL_ISA names, or the best, by default.
        rows: Of the weights.
        columns: Of the weights, a multiple of 256.
        limit_seconds: For each measurement of the limits, see :func:`gristmill.limits.measure_limits`.
        progress: Told about each measurement.

    Raises:
        ArgumentError: An unknown format or instruction set, or a number that makes no sense.
        DeviceError: No memory, or an instruction set that this machine does not have.
    """
    chosen = [format_named(name) for name in names] or formats()
    if n_prompt < 1 or rows < 1:
        raise ArgumentError(f"tokens and rows, expected at least 1, got {n_prompt} and {rows}")
    for format in chosen:
        format.row_bytes(columns)
    return _measure(
        chosen,
        n_threads or _core.default_thread_count(),
        n_prompt,
        seconds,
        isa or _default_isa(),
        (rows, columns),
        limit_seconds,
        progress or (lambda what, done, total: None),
    )


def _default_isa() -> str:
    return os.environ.get("GRISTMILL_ISA") or _core.supported_isas()[0]


def _measure(
    chosen: Sequence[Format],
    n_threads: int,
    n_prompt: int,
    seconds: float,
    isa: str,
    shape: tuple[int, int],
    limit_seconds: float,
    progress: Progress,
) -> Iterator[KernelResult]:
    total = len(chosen) * len(KERNELS)
    limits: Limits | None = None
    with ThreadPoolExecutor(n_threads, "dequantize") as pool:
        for i, format in enumerate(chosen):
            progress(f"{format.name} limits", i * len(KERNELS), total)
            measured = measure_limits(n_threads, isa, seconds=limit_seconds)
            limits = measured if limits is None else limits.best(measured)
            packed = _random_matrix(format, *shape)
            for j, kernel in enumerate(KERNELS):
                progress(f"{format.name} {kernel}", i * len(KERNELS) + j, total)
                if kernel == "dequantize":
                    times = _time_dequantize(pool, n_threads, packed, format, shape[1], seconds)
                    n_tokens, n_bytes = 0, packed.nbytes + 4 * shape[0] * shape[1]
                else:
                    n_tokens, n_bytes = (1 if kernel == "decode" else n_prompt), packed.nbytes
                    times = _core.time_matmul(
                        packed, format.type_id, shape[1], n_tokens, kernel == "decode", n_threads,
                        weight_bytes=_CYCLED_BYTES, seconds=seconds, isa=isa,
                    ).tolist()  # fmt: skip
                yield _result(format, kernel, shape, n_tokens, n_bytes, statistics.median(times), limits)
    progress("done", total, total)


def _result(
    format: Format,
    kernel: str,
    shape: tuple[int, int],
    n_tokens: int,
    n_bytes: int,
    seconds: float,
    limits: Limits,
) -> KernelResult:
    gop_per_s = 2 * shape[0] * shape[1] * n_tokens / seconds / 1e9
    return KernelResult(
        format.name, kernel, *shape, n_tokens, seconds, n_bytes / seconds / 1e9, gop_per_s, limits
    )


def at_best_limits(results: Sequence[KernelResult]) -> list[KernelResult]:
    """The results, each with the best limits that any of them saw with its threads."""
    best: dict[tuple[str, int], Limits] = {}
    for result in results:
        key = (result.limits.isa, result.limits.n_threads)
        best[key] = best.get(key, result.limits).best(result.limits)
    return [dataclasses.replace(r, limits=best[r.limits.isa, r.limits.n_threads]) for r in results]


def _random_matrix(format: Format, rows: int, columns: int) -> NDArray[np.uint8]:
    """uint8 ``[rows, row_bytes]``: normal weights of the size that a layer has."""
    distinct = min(rows, _DISTINCT_ROWS)
    values = np.random.default_rng(0).standard_normal((distinct, columns), np.float32) * columns**-0.5
    packed = np.empty((distinct, format.row_bytes(columns)), np.uint8)
    _core.quantize_rows(values.astype(np.float32), format.name, None, packed)
    return np.ascontiguousarray(np.resize(packed, (rows, packed.shape[1])))


def _time_dequantize(
    pool: ThreadPoolExecutor,
    n_threads: int,
    packed: NDArray[np.uint8],
    format: Format,
    columns: int,
    seconds: float,
) -> list[float]:
    """Seconds of each pass, rows divided among the threads, after one that is not counted."""
    out = np.empty((len(packed), columns), np.float32)
    pieces = np.array_split(np.arange(len(packed)), n_threads)
    parts = [slice(int(p[0]), int(p[-1]) + 1) for p in pieces if len(p)]

    def work(part: slice) -> None:
        _core.dequantize_rows(packed[part], format.name, out[part])

    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < end:
        start = time.perf_counter()
        list(pool.map(work, parts))
        times.append(time.perf_counter() - start)
    return times[1:]


HEADINGS = ("format", "kernel", "shape", "tokens", "ms", "GB/s", "GOP/s", "of the limit")


def as_markdown(results: Sequence[KernelResult]) -> str:
    """A table, and below it the limits that the shares are of."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|---|" + "---:|" * (len(HEADINGS) - 2)]
    for r in results:
        cells = (
            r.format,
            r.kernel,
            f"{r.rows}x{r.columns}",
            str(r.n_tokens) if r.n_tokens else "",
            f"{1e3 * r.seconds:.3f}",
            f"{r.gb_per_s:.1f}",
            f"{r.gop_per_s:.0f}" if r.n_tokens else "",
            f"{100 * r.share:.0f} % {r.bound}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    limits = dict.fromkeys(r.limits for r in results)
    return "\n".join([*lines, "", *(f"limits of {limits_line(each)}" for each in limits)]) + "\n"


def as_json(results: Sequence[KernelResult]) -> str:
    """The version, the time, the machine, and a record for each result."""
    return records_as_json([r.to_dict() for r in results])


def as_csv(results: Sequence[KernelResult]) -> str:
    """The records with a line of headings."""
    return records_as_csv([r.to_dict() for r in results])
