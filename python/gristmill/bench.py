"""How fast a model runs, and what share that is of what the machine can do.

Prefill is bound by arithmetic and decoding by memory, so each test counts the bytes that it has to read and
the operations that it has to do, and compares its time with the limits measured in the same run.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gristmill.bench_work import BenchTest, Work, device_shares, main_format, plan, work_of
from gristmill.errors import ArgumentError
from gristmill.limits import Limits, measure_gpu_limits, measure_limits, one_after_the_other
from gristmill.model import Model
from gristmill.session import Session

Progress = Callable[[str, int, int], None]
"""Called with what runs now, the repetitions that are done, and all there are."""


@dataclass(frozen=True)
class BenchResult:
    """What one test took, on which model and machine; ``seconds`` has one number for each repetition."""

    model: str
    architecture: str
    format: str
    model_bytes: int
    n_parameters: int
    cache_type_k: str
    cache_type_v: str
    precise: bool
    prefill_bits: int
    prefill_arithmetic: str
    test: BenchTest
    seconds: tuple[float, ...]
    work: Work
    limits: Limits
    device: str = "cpu"
    file_gb_s: float = 0.0
    """1e9 bytes a second that the threads read from the model's file where it is mapped, the best seen, of a
    GiB at most; 0 where weights are elsewhere. Much less than ``limits.read_gb_s`` says that decoding is slow
    for want of memory as good as the limits' own: small pages, or another processor's."""

    @property
    def samples(self) -> list[float]:
        """Tokens a second of each repetition, all sequences together."""
        return [self.test.n_total / s for s in self.seconds]

    @property
    def mean(self) -> float:
        """Tokens a second, the mean of the repetitions."""
        return statistics.fmean(self.samples)

    @property
    def stddev(self) -> float:
        """Sample standard deviation of the tokens a second; 0 for a single repetition."""
        return statistics.stdev(self.samples) if len(self.seconds) > 1 else 0.0

    @property
    def best(self) -> float:
        """Tokens a second of the fastest repetition."""
        return max(self.samples)

    @property
    def gb_per_s(self) -> float:
        """1e9 bytes of weights, keys and values a second, at the mean speed."""
        return self._per_second(self.work.weight_bytes + self.work.kv_bytes)

    @property
    def gop_per_s(self) -> float:
        """1e9 operations of matrix products a second, at the mean speed."""
        return self._per_second(self.work.all_ops)

    @property
    def share_of_bandwidth(self) -> float:
        """``gb_per_s`` over what the threads can read: 1 is as fast as memory allows."""
        return self.gb_per_s / self.limits.read_gb_s

    @property
    def share_of_peak(self) -> float:
        """The time that the operations take at peak, each kind at its own, over the time taken."""
        return sum(self._per_second(n) / self.limits.gop_s_of(kind) for kind, n in self.work.ops.items())

    @property
    def bound(self) -> str:
        """The limit that is nearer: "memory" or "arithmetic"."""
        return "memory" if self.share_of_bandwidth >= self.share_of_peak else "arithmetic"

    @property
    def share(self) -> float:
        """The share of the limit that is nearer."""
        return max(self.share_of_bandwidth, self.share_of_peak)

    def _per_second(self, count: int) -> float:
        return count / self.test.n_total * self.mean / 1e9

    def to_dict(self) -> dict[str, Any]:
        """One flat record, ready for JSON; speeds are in tokens a second."""
        n, work = self.test.n_total, self.work
        return {
            "model": self.model,
            "architecture": self.architecture,
            "format": self.format,
            "model_bytes": self.model_bytes,
            "n_parameters": self.n_parameters,
            "isa": self.limits.isa,
            "device": self.device,
            "n_threads": self.limits.n_threads,
            "cache_type_k": self.cache_type_k,
            "cache_type_v": self.cache_type_v,
            "precise": self.precise,
            "prefill_bits": self.prefill_bits,
            "prefill_arithmetic": self.prefill_arithmetic,
            "test": self.test.name,
            "phase": self.test.phase,
            "n_tokens": self.test.n_tokens,
            "batch": self.test.batch,
            "depth": self.test.depth,
            "repetitions": len(self.seconds),
            "mean": self.mean,
            "stddev": self.stddev,
            "best": self.best,
            "samples": self.samples,
            "weight_bytes_per_token": work.weight_bytes / n,
            "kv_bytes_per_token": work.kv_bytes / n,
            "operations_per_token": work.all_ops / n,
            "gb_per_s": self.gb_per_s,
            "gop_per_s": self.gop_per_s,
            "share_of_bandwidth": self.share_of_bandwidth,
            "share_of_peak": self.share_of_peak,
            "bound": self.bound,
            "share": self.share,
            "limit_read_gb_s": self.limits.read_gb_s,
            "limit_int8_gop_s": self.limits.int8_gop_s,
            "limit_float32_gop_s": self.limits.float32_gop_s,
            "limit_bfloat16_gop_s": self.limits.bfloat16_gop_s,
            "limit_int16_gop_s": self.limits.int16_gop_s,
            "limit_copy_gb_s": self.limits.copy_gb_s,
            "limit_tensor_gop_s": self.limits.tensor_gop_s,
            "limit_file_gb_s": self.file_gb_s,
        }


def bench(
    model: Model,
    prompts: Sequence[int] = (512,),
    generations: Sequence[int] = (128,),
    batches: Sequence[int] = (1,),
    depths: Sequence[int] = (0,),
    repetitions: int = 5,
    *,
    limit_seconds: float = 0.4,
    progress: Progress | None = None,
) -> list[BenchResult]:
    """Measure a model; the tests are those of :func:`plan`, in that order.

    Tokens are random, the same in every run; nothing is sampled. One repetition before those that count warms
    up caches and threads. The limits are measured before the first test and after each one, and the best
    counts for all.

    Args:
        model: Its context must hold depth and tokens together.
        prompts: Tokens to prefill, a test each.
        generations: Tokens to decode, a test each.
        batches: Sequences to decode together, through :meth:`Model.decode_batch`.
        depths: Tokens that each sequence holds before the clock starts.
        repetitions: How often each test is measured.
        limit_seconds: Time for each measurement of the limits, see :func:`gristmill.limits.measure_limits`.
        progress: Told about each repetition.

    Raises:
        ArgumentError: A number makes no sense, or the model's context is too small.
        DeviceError: There is not the memory for so many sequences.
    """
    wanted = plan(prompts, generations, batches, depths)
    return at_best_limits(
        list(run(model, wanted, repetitions, limit_seconds=limit_seconds, progress=progress))
    )


def run(
    model: Model,
    wanted: Sequence[BenchTest],
    repetitions: int = 5,
    *,
    limit_seconds: float = 0.4,
    progress: Progress | None = None,
) -> Iterator[BenchResult]:
    """The tests one by one, so that nothing is lost when one is broken off; see :func:`bench`.

    Each result has the best limits until then: pass all results to :func:`at_best_limits` in the end.
    """
    if repetitions < 1:
        raise ArgumentError(f"repetitions, expected at least 1, got {repetitions}")
    needed = max((test.n_positions for test in wanted), default=0)
    if needed > model.n_ctx:
        raise ArgumentError(
            f"the tests need {needed} positions, but the model was loaded with a context of {model.n_ctx}"
        )
    return _run(model, wanted, repetitions, limit_seconds, progress or (lambda what, done, total: None))


def _run(
    model: Model, wanted: Sequence[BenchTest], repetitions: int, limit_seconds: float, progress: Progress
) -> Iterator[BenchResult]:
    if not wanted:
        return

    def measured() -> Limits:
        return _limits_of(model, limit_seconds)

    def file_gb_s() -> float:
        return model.engine.measure_reading(limit_seconds / 2) if model.device == "cpu" else 0.0

    progress("limits", 0, len(wanted) * (repetitions + 1))
    limits = measured()
    from_file = file_gb_s()
    for i, test in enumerate(wanted):

        def told(n: int, i: int = i, test: BenchTest = test) -> None:
            progress(test.name, i * (repetitions + 1) + n, len(wanted) * (repetitions + 1))

        seconds = _time(model, test, repetitions, told)
        limits = limits.best(measured())
        from_file = max(from_file, file_gb_s())
        yield BenchResult(
            model=model.path.name,
            architecture=model.architecture,
            format=main_format(model),
            model_bytes=sum(t.n_bytes for t in model.tensors.values()),
            n_parameters=sum(t.n_elements for t in model.tensors.values()),
            cache_type_k=model.cache_type_k,
            cache_type_v=model.cache_type_v,
            precise=model.precise,
            prefill_bits=model.prefill_bits,
            prefill_arithmetic=model.prefill_arithmetic,
            test=test,
            seconds=tuple(seconds),
            work=work_of(model, test),
            limits=limits,
            device=model.device,
            file_gb_s=from_file,
        )


def _limits_of(model: Model, seconds: float) -> Limits:
    """The limits of the devices that the model's layers are on."""
    if model.device == "cpu":
        return measure_limits(model.n_threads, model.isa, seconds=seconds)
    parts = []
    for part, share in zip(model.device_layers, device_shares(model), strict=True):
        if part.device == "cpu":
            limits = measure_limits(model.n_threads, model.isa, seconds=seconds)
        else:
            limits = measure_gpu_limits(part.gpu_index, seconds=seconds)
        parts.append((share, limits))
    return one_after_the_other(parts, model.device, model.n_threads)


def at_best_limits(results: Sequence[BenchResult]) -> list[BenchResult]:
    """The results, each with the best limits that any of them saw with its instruction set and threads."""
    best: dict[tuple[str, int], Limits] = {}
    for result in results:
        key = (result.limits.isa, result.limits.n_threads)
        best[key] = best.get(key, result.limits).best(result.limits)
    return [dataclasses.replace(r, limits=best[r.limits.isa, r.limits.n_threads]) for r in results]


def _time(model: Model, test: BenchTest, repetitions: int, told: Callable[[int], None]) -> list[float]:
    """Seconds of each repetition."""
    rng = np.random.default_rng(0)
    told(0)
    sessions = [model.session() for _ in range(test.batch)]
    if test.depth:
        for session in sessions:
            session.forward(rng.integers(0, model.n_vocab, test.depth))
    ids = rng.integers(0, model.n_vocab, (test.n_tokens, test.batch))
    seconds = []
    for i in range(repetitions + 1):
        for session in sessions:
            session.truncate(test.depth)
        start = time.perf_counter()
        if test.phase == "prefill":
            sessions[0].forward(ids[:, 0])
        else:
            _decode(model, sessions, ids.tolist())
        seconds.append(time.perf_counter() - start)
        told(i + 1)
    return seconds[1:]


def _decode(model: Model, sessions: Sequence[Session], steps: Sequence[Sequence[int]]) -> None:
    # What generation asks for; a vocabulary's logits to the host would be measured too.
    k = min(64, model.n_vocab)
    for tokens in steps:
        if model.finds_top_logits and len(sessions) == 1:
            sessions[0].forward_top(tokens, k)
        elif model.finds_top_logits:
            model.decode_batch_top(sessions, tokens, k)
        elif len(sessions) == 1:
            sessions[0].forward(tokens)
        else:
            model.decode_batch(sessions, tokens)
