"""How far one model's predictions are from another's, position by position.

Both run over the same windows at the same time, and of their logits nothing is kept but a few numbers a
position, so no file of logits is needed. Sums are float64: a divergence of 1e-6 is the small difference of
terms near 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gristmill.errors import ArgumentError, Error
from gristmill.lab.score import PerplexityResult
from gristmill.lab.text import TextWindows, cut, scored_chunks, window_logits
from gristmill.messages import printable

if TYPE_CHECKING:
    from pathlib import Path

    from gristmill.model import Model
    from gristmill.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""Called after each window with the windows done and all there are."""


@dataclass(frozen=True)
class DivergenceResult:
    """A model against the base.

    ``kl`` float64 ``[n_windows, scored tokens of a window]``: KL(base || model) of the next token's
    distribution in nats. ``same_top`` bool of the same shape: whether both think the same token most likely.
    """

    base: str
    scores: PerplexityResult
    kl: NDArray[np.float64] = field(repr=False)
    same_top: NDArray[np.bool_] = field(repr=False)

    @property
    def model(self) -> str:
        """The model's file."""
        return self.scores.model

    @property
    def mean_kl(self) -> float:
        """Mean over the scored positions."""
        return float(self.kl.mean())

    @property
    def mean_kl_stderr(self) -> float:
        """Standard error of the mean, positions taken as independent."""
        return float(self.kl.std(ddof=1)) / math.sqrt(self.kl.size) if self.kl.size > 1 else 0.0

    @property
    def p99_kl(self) -> float:
        """99th percentile, interpolated."""
        return float(np.percentile(self.kl, 99))

    @property
    def max_kl(self) -> float:
        """The largest."""
        return float(self.kl.max())

    @property
    def top1_agreement(self) -> float:
        """Share of positions at which both think the same token most likely."""
        return float(self.same_top.mean())


def check_same_vocabulary(base: Tokenizer, base_path: Path, other: Tokenizer, other_path: Path) -> None:
    """Raises Error where token ids do not mean the same to both."""
    what = ""
    if base.n_vocab != other.n_vocab:
        what = f"it has {other.n_vocab} tokens, not {base.n_vocab}"
    else:
        pairs = zip(base.all_token_bytes(), other.all_token_bytes(), strict=True)
        for token, (mine, theirs) in enumerate(pairs):
            if mine != theirs:
                what = f"its token {token} is {_shown(theirs)}, not {_shown(mine)}"
                break
    if what:
        raise Error(
            f"{printable(str(other_path))}: cannot be compared with {printable(base_path.name)}, "
            f"since the vocabularies differ: {what}"
        )


def _shown(token: bytes) -> str:
    return repr(printable(token.decode("utf-8", "replace"), 40))


def divergence(
    base: Model,
    models: Sequence[Model],
    text: str | TextWindows,
    n_ctx: int = 512,
    n_windows: int | None = None,
    progress: Progress | None = None,
) -> tuple[PerplexityResult, list[DivergenceResult]]:
    """Run ``base`` and ``models`` side by side over a text.

    Args:
        base: The model to measure from.
        models: The models to measure, with ``base``'s vocabulary.
        text: A text to cut by :func:`gristmill.lab.cut`, or what that made.
        n_ctx: Tokens of a window, where ``text`` is a string.
        n_windows: Windows to use at most, where ``text`` is a string.
        progress: Told about each window.

    Returns:
        The base's own scores, and a result for each model, in order. They depend neither on the number of
        threads nor on which models run beside each other.

    Raises:
        Error: Another vocabulary, a text too short for one window, or logits that are not finite.
        ContextFullError: A model was loaded with a context that is smaller than a window.
    """
    for model in models:
        check_same_vocabulary(base.tokenizer, base.path, model.tokenizer, model.path)
    windows = text if isinstance(text, TextWindows) else cut(base.tokenizer, text, n_ctx, n_windows)
    shape = (windows.n_windows, windows.n_ctx - 1 - windows.first_scored)
    base_nll, nll, kl = np.empty(shape), np.empty((len(models), *shape)), np.empty((len(models), *shape))
    same_top = np.empty((len(models), *shape), bool)
    sessions = [model.session() for model in (base, *models)]
    # One cut for all: embeddings may be padded to different sizes.
    chunks = scored_chunks(windows.n_ctx, max(session.model.n_vocab for session in sessions))
    for i, window in enumerate(windows.ids):
        of_base, *others = [window_logits(session, window, chunks) for session in sessions]
        for positions, logits in of_base:
            at = slice(positions.start - windows.first_scored, positions.stop - windows.first_scored)
            targets = window[positions.start + 1 : positions.stop + 1]
            reference = Reference(logits)
            base_nll[i, at] = reference.nll(targets)
            for k, run in enumerate(others):
                _, theirs = next(run)  # one model's logits at a time
                nll[k, i, at], kl[k, i, at], same_top[k, i, at] = reference.compare(theirs, targets)
        if progress is not None:
            progress(i + 1, windows.n_windows)

    def scores(model: Model, values: NDArray[np.float64]) -> PerplexityResult:
        return PerplexityResult(model.path.name, windows.n_ctx, windows.n_tokens, values)

    results = [
        DivergenceResult(base.path.name, scores(model, nll[k]), kl[k], same_top[k])
        for k, model in enumerate(models)
    ]
    return scores(base, base_nll), results


class Reference:
    """The distributions that others are measured against: softmax of ``logits``, float32 ``[n, n_vocab]``."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logits = logits
        self._weights = np.empty(logits.shape)  # exp(logit - the row's largest)
        self._partition = np.empty(len(logits))  # their sum
        self._top = logits.argmax(axis=1)
        for i, row in enumerate(logits):
            weights = self._weights[i]
            np.subtract(row, row[self._top[i]], out=weights, dtype=np.float64)
            np.exp(weights, out=weights)
            self._partition[i] = weights.sum()
        self._log_partition: NDArray[np.float64] = logits.max(axis=1) + np.log(self._partition)

    def nll(self, targets: NDArray[np.int32]) -> NDArray[np.float64]:
        """Negative log probabilities of the tokens that came, ``[n]``."""
        of_targets: NDArray[np.float32] = self._logits[np.arange(len(targets)), targets]
        return self._log_partition - of_targets

    def compare(
        self, logits: NDArray[np.float32], targets: NDArray[np.int32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Another model's logits of the same positions.

        Returns:
            Its negative log probabilities of ``targets``, KL(reference || it), and whether the two agree on
            the most likely token, each ``[n]``.
        """
        if logits.shape != self._logits.shape:
            raise ArgumentError(f"logits, expected shape {self._logits.shape}, got {logits.shape}")
        n, n_vocab = logits.shape
        nll, kl = np.empty(n), np.empty(n)
        top = logits.argmax(axis=1)
        shifted, difference = np.empty(n_vocab), np.empty(n_vocab)
        for i in range(n):
            row, mine, weights = logits[i], self._logits[i], self._weights[i]
            # sum p (log p - log q), with p = weights / partition: the difference of logits, weighted, and
            # then the difference of the two log partitions.
            np.subtract(mine, row, out=difference, dtype=np.float64)
            np.multiply(difference, weights, out=difference)
            np.subtract(row, row[top[i]], out=shifted, dtype=np.float64)
            log_partition = float(row[top[i]]) + math.log(np.exp(shifted, out=shifted).sum())
            kl[i] = difference.sum() / self._partition[i] - self._log_partition[i] + log_partition
            nll[i] = log_partition - float(row[targets[i]])
        # Rounding leaves about -1e-15 where two distributions are the same.
        return nll, np.maximum(kl, 0.0), top == self._top
