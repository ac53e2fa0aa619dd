"""Perplexity of a model on a text, by llama-perplexity's method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gristmill.lab.text import TextWindows, cut, scored_chunks, window_logits

if TYPE_CHECKING:
    from gristmill.model import Model

Progress = Callable[[int, int, float], None]
"""Called after each window with the windows done, all there are, and the perplexity until then."""


@dataclass(frozen=True)
class PerplexityResult:
    """Negative log probabilities in nats: ``nll`` float64 ``[n_windows, scored tokens of a window]``."""

    model: str
    n_ctx: int
    n_tokens: int
    """Tokens of the whole text; what does not fill a window is not used."""
    nll: NDArray[np.float64] = field(repr=False)

    @property
    def n_windows(self) -> int:
        """Windows run."""
        return int(self.nll.shape[0])

    @property
    def n_scored(self) -> int:
        """Tokens scored."""
        return int(self.nll.size)

    @property
    def mean_nll(self) -> float:
        """Mean negative log probability of a scored token, in nats."""
        return float(self.nll.mean())

    @property
    def perplexity(self) -> float:
        """``exp(mean_nll)``."""
        return math.exp(self.mean_nll)

    @property
    def stderr(self) -> float:
        """Standard error of the perplexity, scored tokens taken as independent, as in llama-perplexity."""
        return perplexity_stderr(self.nll)

    def by_window(self) -> NDArray[np.float64]:
        """The perplexity of each window alone, ``[n_windows]``."""
        each: NDArray[np.float64] = np.exp(self.nll.mean(axis=1))
        return each


def perplexity_stderr(nll: NDArray[np.float64]) -> float:
    """``exp(mean) * std(nll) / sqrt(n - 1)``, with the population's standard deviation."""
    n = nll.size
    return math.exp(float(nll.mean())) * float(nll.std()) / math.sqrt(n - 1) if n > 1 else 0.0


def log_partition(row: NDArray[np.float32]) -> float:
    """``log(sum(exp(row)))`` in float64."""
    x = row.astype(np.float64)
    peak = x.max()
    x -= peak
    return float(peak + np.log(np.exp(x, out=x).sum()))


def perplexity(
    model: Model,
    text: str | TextWindows,
    n_ctx: int = 512,
    n_windows: int | None = None,
    progress: Progress | None = None,
) -> PerplexityResult:
    """Score a text.

    Args:
        model: Its context must hold a window.
        text: A text to cut by :func:`gristmill.lab.cut`, or what that made.
        n_ctx: Tokens of a window, where ``text`` is a string.
        n_windows: Windows to use at most, where ``text`` is a string.
        progress: Told about each window.

    Raises:
        Error: The text is too short for one window, or the logits are not finite.
        ContextFullError: The model was loaded with a context that is smaller than a window.
    """
    windows = text if isinstance(text, TextWindows) else cut(model.tokenizer, text, n_ctx, n_windows)
    first = windows.first_scored
    nll = np.empty((windows.n_windows, windows.n_ctx - 1 - first))
    session, chunks = model.session(), scored_chunks(windows.n_ctx, model.n_vocab)
    for i, window in enumerate(windows.ids):
        for positions, logits in window_logits(session, window, chunks):
            targets = window[positions.start + 1 : positions.stop + 1]
            for j, (row, target) in enumerate(zip(logits, targets, strict=True), positions.start - first):
                nll[i, j] = log_partition(row) - float(row[target])
        if progress is not None:
            progress(i + 1, windows.n_windows, math.exp(float(nll[: i + 1].mean())))
    return PerplexityResult(model.path.name, windows.n_ctx, windows.n_tokens, nll)
