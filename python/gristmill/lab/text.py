"""A text cut into the windows that perplexity and divergence are measured over.

The cut is llama-perplexity's: consecutive windows of ``n_ctx`` tokens, what is left over at the end dropped,
the first token of each window replaced by BOS where the vocabulary adds one. In each window the second half
is scored, so that every scored token has at least ``n_ctx / 2`` tokens before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gristmill.errors import ArgumentError, Error
from gristmill.messages import printable

if TYPE_CHECKING:
    from gristmill.session import Session
    from gristmill.tokenizer import Tokenizer

MIN_WINDOW = 8
# Logits of one pass. A window of 4096 over 152 064 tokens would take 1.2 GB.
_LOGIT_BYTES = 64 << 20
_MIN_ROWS = 16


@dataclass(frozen=True)
class TextWindows:
    """``ids`` int32 ``[n_windows, n_ctx]``, of a text of ``n_tokens`` tokens."""

    ids: NDArray[np.int32]
    n_tokens: int

    @property
    def n_windows(self) -> int:
        """Windows there are."""
        return int(self.ids.shape[0])

    @property
    def n_ctx(self) -> int:
        """Tokens of each."""
        return int(self.ids.shape[1])

    @property
    def first_scored(self) -> int:
        """The position in a window whose logits are the first to be scored; they predict the next token."""
        return self.n_ctx // 2

    @property
    def n_scored(self) -> int:
        """Tokens scored in all windows."""
        return self.n_windows * (self.n_ctx - 1 - self.first_scored)


def cut(
    tokenizer: Tokenizer, text: str, n_ctx: int = 512, n_windows: int | None = None, source: str = "the text"
) -> TextWindows:
    """Tokenize ``text`` and cut it into windows.

    Args:
        tokenizer: Of the model; special tokens in the text are read as plain text.
        text: Any length, at least ``n_ctx`` tokens.
        n_ctx: Tokens of a window, at least 8.
        n_windows: Windows to use at most; None for all.
        source: What messages call the text.

    Raises:
        ArgumentError: A number makes no sense.
        Error: The text is too short for one window.
    """
    if n_ctx < MIN_WINDOW:
        raise ArgumentError(f"a window needs at least {MIN_WINDOW} tokens, got {n_ctx}")
    if n_windows is not None and n_windows < 1:
        raise ArgumentError(f"the number of windows must be at least 1, got {n_windows}")
    ids = np.asarray(tokenizer.encode(text, add_special=True), np.int32)
    if len(ids) < n_ctx:
        raise Error(
            f"{printable(source)}: too short: {len(ids)} tokens, and one window has {n_ctx}; "
            "a longer text or a smaller --ctx-size would do"
        )
    count = min(len(ids) // n_ctx, n_windows or len(ids))
    windows = ids[: count * n_ctx].reshape(count, n_ctx).copy()
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        windows[:, 0] = tokenizer.bos_id
    return TextWindows(windows, len(ids))


def scored_chunks(n_ctx: int, n_vocab: int) -> list[slice]:
    """Positions of a window whose logits are scored, in pieces whose logits take bounded memory.

    The last position is left out, since the token that it predicts lies in the next window.
    """
    first, end = n_ctx // 2, n_ctx - 1
    rows = max(_MIN_ROWS, _LOGIT_BYTES // (4 * n_vocab))
    n_chunks = -(-(end - first) // rows)
    edges = np.linspace(first, end, n_chunks + 1).astype(int).tolist()
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def window_logits(
    session: Session, window: NDArray[np.int32], chunks: Sequence[slice]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Run one window from its beginning and yield the scored positions, chunk by chunk, with their logits.

    Yields:
        ``(positions, logits)``, float32 ``[len(positions), n_vocab]`` over the tokenizer's vocabulary, since
        rows that pad an embedding beyond it mean nothing.
    """
    n_vocab = session.model.tokenizer.n_vocab
    session.truncate(0)
    session.forward(window[: chunks[0].start])
    for chunk in chunks:
        yield chunk, session.forward(window[chunk], all_logits=True)[:, :n_vocab]
