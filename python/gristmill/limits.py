"""What the machine can do at most, measured: the yardstick of every speed that gristmill reports.

A token's weights have to be read from memory and multiplied. How fast the threads can read, and how many
multiply-adds they can do, bound the speed of any kernel, so a speed is given with its share of that bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gristmill import _core
from gristmill.machine import available_memory

_BUFFER_BYTES = 512 << 20
_SMALLEST_BUFFER = 64 << 20


@dataclass(frozen=True)
class Limits:
    """Best seen of ``n_threads`` threads with the instructions of ``isa``; a multiply-add is two operations.

    ``read_gb_s``: 1e9 bytes a second read from memory. ``int8_gop_s``: 1e9 operations a second of the
    instruction that products of quantized weights are made of (``vpdpbusd``, ``vpmaddwd``).
    ``float32_gop_s``, ``bfloat16_gop_s`` and ``int16_gop_s`` (``vpdpwssd``, ``vpmaddwd``): the same of what
    multiplies other weights; the latter two are 0 where the processor has no such instruction. Where a set
    has tiles of bfloat16, ``bfloat16_gop_s`` is of their products.

    Where layers are on GPUs, ``isa`` names all devices, and each number is what they reach one after the
    other, each with its part of the weights. A GPU counts its tensor products of halves (``tensor_gop_s``, 0
    where the model is on the CPU alone) for weights of either kind, and ``copy_gb_s`` is what it copies
    within its memory, bytes read and bytes written both counted.
    """

    isa: str
    n_threads: int
    read_gb_s: float
    int8_gop_s: float
    float32_gop_s: float
    bfloat16_gop_s: float
    int16_gop_s: float = 0.0
    copy_gb_s: float = 0.0
    tensor_gop_s: float = 0.0

    def gop_s_of(self, arithmetic: str) -> float:
        """What products can reach in what ``_core.arithmetic`` names; where a GPU is, its own."""
        rates = {
            "int8": self.int8_gop_s,
            "int16": self.int16_gop_s,
            "bfloat16": self.bfloat16_gop_s,
            "float32": self.float32_gop_s,
            "float16": self.tensor_gop_s,
        }
        return self.tensor_gop_s or rates[arithmetic]

    def best(self, other: Limits) -> Limits:
        """The larger of each, for what was seen once is possible; both of one ``isa`` and ``n_threads``."""
        assert (self.isa, self.n_threads) == (other.isa, other.n_threads)
        return Limits(
            self.isa,
            self.n_threads,
            max(self.read_gb_s, other.read_gb_s),
            max(self.int8_gop_s, other.int8_gop_s),
            max(self.float32_gop_s, other.float32_gop_s),
            max(self.bfloat16_gop_s, other.bfloat16_gop_s),
            max(self.int16_gop_s, other.int16_gop_s),
            max(self.copy_gb_s, other.copy_gb_s),
            max(self.tensor_gop_s, other.tensor_gop_s),
        )


def measure_limits(
    n_threads: int, isa: str, *, seconds: float = 0.4, buffer_bytes: int | None = None
) -> Limits:
    """Measure for about ``seconds`` each. Other programs that run lower what is found.

    Args:
        n_threads: Threads that work at once.
        isa: Name of an instruction set, as ``Model.isa``.
        seconds: Time for bandwidth and, at most half of it, for each kind of arithmetic.
        buffer_bytes: What is read; by default 512 MiB, or a quarter of the available memory if that is less.

    Raises:
        ArgumentError: An argument is out of range or ``isa`` is unknown.
        DeviceError: The machine cannot run ``isa``, or has no memory for the buffer.
    """

    def peak(kind: str) -> float:
        return _core.measure_peak_ops(n_threads, kind, seconds / 2, isa)

    size = default_buffer_bytes() if buffer_bytes is None else buffer_bytes
    return Limits(
        isa,
        n_threads,
        _core.measure_read_bandwidth(n_threads, size, seconds, isa),
        peak("int8"),
        peak("float32"),
        peak("bfloat16"),
        peak("int16"),
    )


def measure_gpu_limits(index: int, *, seconds: float = 0.4) -> Limits:
    """The same of a GPU, by the driver's number.

    Raises:
        DeviceError: There is no such GPU, or it has no memory to measure in.
    """
    read, copy, tensor = _core.measure_gpu_limits(index, seconds)
    return Limits(f"cuda:{index}", 1, read, 0.0, 0.0, 0.0, copy_gb_s=copy, tensor_gop_s=tensor)


def one_after_the_other(parts: Sequence[tuple[float, Limits]], isa: str, n_threads: int) -> Limits:
    """The limits of devices that each do a share of the work (shares add up to 1) while the others wait."""

    def rate(of: Callable[[Limits], float]) -> float:
        rates = [(share, of(limits)) for share, limits in parts if share > 0]
        return 1 / sum(share / r for share, r in rates) if rates and all(r for _, r in rates) else 0.0

    return Limits(
        isa,
        n_threads,
        rate(lambda limits: limits.read_gb_s),
        rate(lambda limits: limits.int8_gop_s),
        rate(lambda limits: limits.float32_gop_s),
        rate(lambda limits: limits.bfloat16_gop_s),
        rate(lambda limits: limits.int16_gop_s),
        rate(lambda limits: limits.copy_gb_s),
        rate(lambda limits: limits.gop_s_of("int8"))
        if any(limits.tensor_gop_s for _, limits in parts)
        else 0.0,
    )


def default_buffer_bytes() -> int:
    """512 MiB, which no cache holds, or less where memory is short."""
    available = available_memory()
    if available is None:
        return _BUFFER_BYTES
    return max(_SMALLEST_BUFFER, min(_BUFFER_BYTES, available // 4))
