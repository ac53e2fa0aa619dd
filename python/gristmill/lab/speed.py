"""How fast models load and run, measured in turn so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gristmill.errors import ArgumentError
from gristmill.model import load

Progress = Callable[[str, int, int], None]
"""Called with a model's name, the measurements done, and all there are."""


@dataclass(frozen=True)
class SpeedResult:
    """What each round took, in seconds and tokens a second.

    Loading is everything from opening the file to the logits of a first token, the tokenizer included. A
    median of three rounds leaves out the first, in which the file may not be in memory yet.
    """

    model: str
    n_prompt: int
    n_decode: int
    load: tuple[float, ...]
    prefill: tuple[float, ...]
    decode: tuple[float, ...]

    @property
    def load_seconds(self) -> float:
        """Median."""
        return statistics.median(self.load)

    @property
    def prefill_tps(self) -> float:
        """Median."""
        return statistics.median(self.prefill)

    @property
    def decode_tps(self) -> float:
        """Median."""
        return statistics.median(self.decode)


def speeds(
    paths: Sequence[Path],
    n_prompt: int = 512,
    n_decode: int = 32,
    rounds: int = 3,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> list[SpeedResult]:
    """Load each file, prefill ``n_prompt`` random tokens, decode ``n_decode`` more, and all of that again.

    Args:
        paths: GGUF files.
        n_prompt: Tokens of the prefill, at least 1.
        n_decode: Tokens decoded one by one after it, at least 1.
        rounds: How often; at least 1.
        n_threads: Threads that compute; the physical cores by default.
        progress: Told about each measurement.

    Raises:
        ArgumentError: A number makes no sense.
        Error: A file cannot be loaded.
    """
    check_speed_settings(n_prompt, n_decode, rounds)
    times: list[tuple[list[float], list[float], list[float]]] = [([], [], []) for _ in paths]
    for i in range(rounds):
        for j, path in enumerate(paths):
            if progress is not None:
                progress(path.name, i * len(paths) + j, rounds * len(paths))
            one = _round(path, n_prompt, n_decode, n_threads)
            for kept, seconds_or_rate in zip(times[j], one, strict=True):
                kept.append(seconds_or_rate)
    return [
        SpeedResult(path.name, n_prompt, n_decode, tuple(loads), tuple(prefills), tuple(decodes))
        for path, (loads, prefills, decodes) in zip(paths, times, strict=True)
    ]


def check_speed_settings(n_prompt: int, n_decode: int, rounds: int) -> None:
    """Raises ArgumentError where :func:`speeds` would."""
    for name, value in (("n_prompt", n_prompt), ("n_decode", n_decode), ("rounds", rounds)):
        if value < 1:
            raise ArgumentError(f"{name}, expected at least 1, got {value}")


def _round(path: Path, n_prompt: int, n_decode: int, n_threads: int | None) -> tuple[float, float, float]:
    """Seconds of loading, tokens a second of prefill and of decoding."""
    start = time.perf_counter()
    model = load(path, n_ctx=n_prompt + n_decode, n_threads=n_threads)
    n_vocab = model.tokenizer.n_vocab
    session = model.session()
    session.forward([0])
    loaded = time.perf_counter() - start
    ids = np.random.default_rng(0).integers(0, n_vocab, n_prompt + n_decode)
    # Work space of this size is taken once, by the first prefill; threads and caches warm up with it.
    session.truncate(0)
    session.forward(ids[: min(n_prompt, model.engine.max_batch)])
    session.truncate(0)
    start = time.perf_counter()
    session.forward(ids[:n_prompt])
    prefill = n_prompt / (time.perf_counter() - start)
    start = time.perf_counter()
    for token in ids[n_prompt:].tolist():
        session.forward([token])
    return loaded, prefill, n_decode / (time.perf_counter() - start)
