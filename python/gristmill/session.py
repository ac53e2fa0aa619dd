"""A sequence of tokens and the passes that extend it, alone or together with others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gristmill import _core
from gristmill.errors import ArgumentError, ContextFullError

if TYPE_CHECKING:
    from gristmill.model import Model


class Session:
    """One sequence of tokens and its keys and values."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.core = _core.Session(model.engine)
        self.tokens: list[int] = []
        """The tokens whose keys and values the cache holds."""

    @property
    def n_past(self) -> int:
        """Positions filled."""
        return self.core.n_past

    @property
    def n_ctx(self) -> int:
        """Positions there are."""
        return self.model.n_ctx

    def forward(
        self, ids: Sequence[int] | NDArray[np.integer[Any]], all_logits: bool = False
    ) -> NDArray[np.float32]:
        """Append tokens to the sequence.

        Long prompts run in several passes. Ctrl-C takes effect between the layers of one; the session then
        holds the positions of the passes that were done.

        Args:
            ids: Token ids, at least one.
            all_logits: Whether every position's logits are wanted.

        Returns:
            float32 ``[n_vocab]``, the last position's logits, or ``[len(ids), n_vocab]`` with ``all_logits``.

        Raises:
            ContextFullError: The tokens do not fit; nothing was appended.
            ArgumentError: No token, or one outside the vocabulary.
            GGUFError: The file was cut while in use.
            Error: The logits are not finite.
        """
        if not all_logits and isinstance(ids, list) and len(ids) == 1 and self._fits(ids[0]):
            return self._forward_one(ids[0])
        tokens = token_array(ids)
        every = np.empty((len(tokens), self.model.n_vocab), np.float32) if all_logits else None
        last: NDArray[np.float32] | None = None

        def step(first: int, some: NDArray[np.int32]) -> None:
            nonlocal last
            is_last = first + len(some) == len(tokens)
            last = self.core.forward(some, "all" if all_logits else "last" if is_last else "none")
            if every is not None:
                every[first : first + len(some)] = last

        self._in_passes(tokens, step)
        assert last is not None
        return last[0] if every is None else every

    def _fits(self, token: Any) -> bool:
        return type(token) is int and 0 <= token < self.model.n_vocab and self.n_past < self.n_ctx

    def _forward_one(self, token: int) -> NDArray[np.float32]:
        """What :meth:`forward` does with one token.

        A pass leaves nothing else in the caches, and all that Python then touches comes from memory: numpy's
        reductions over one number took 0.1 ms.
        """
        logits: NDArray[np.float32]
        try:
            logits = self.core.forward(np.array((token,), np.int32), "last")
        finally:
            if self.core.n_past > len(self.tokens):
                self.tokens.append(token)
        row: NDArray[np.float32] = logits[0]
        return row

    def forward_top(
        self, ids: Sequence[int] | NDArray[np.integer[Any]], k: int, n_vocab: int | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Append tokens to the sequence, and find the largest logits where the output is: on a GPU.

        Args:
            ids: Token ids, at least one.
            k: How many logits, at most 1024.
            n_vocab: How many tokens take part, from 0 on; all by default.

        Returns:
            int32 ``[k]``, tokens, and float32 ``[k]``, their logits, of the last position, largest first and
            equal ones by token: bit for bit those of :meth:`forward`.

        Raises:
            ArgumentError: The output is on the CPU, or a number is out of range.
            Error: What :meth:`forward` raises.
        """
        tokens = token_array(ids)
        found: tuple[NDArray[np.int32], NDArray[np.float32]] | None = None

        def step(first: int, some: NDArray[np.int32]) -> None:
            nonlocal found
            if first + len(some) == len(tokens):
                found = self.core.forward_top(some, k, self.model.n_vocab if n_vocab is None else n_vocab)
            else:
                self.core.forward(some, "none")

        self._in_passes(tokens, step)
        assert found is not None
        return found[0][0], found[1][0]

    def _in_passes(self, tokens: NDArray[np.int32], step: Callable[[int, NDArray[np.int32]], None]) -> None:
        """Checks tokens and calls ``step`` with the first token's index and the tokens of each pass."""
        if len(tokens) == 0:
            raise ArgumentError("forward needs at least one token")
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.model.n_vocab:
            bad = tokens[(tokens < 0) | (tokens >= self.model.n_vocab)][0]
            raise ArgumentError(f"token {bad} is outside the vocabulary of {self.model.n_vocab}")
        if self.n_past + len(tokens) > self.n_ctx:
            held = f" of which {self.n_past} are filled" if self.n_past else ""
            raise ContextFullError(
                f"{len(tokens)} tokens do not fit the context of {self.n_ctx}{held}; a larger n_ctx "
                "(--ctx-size) would hold them"
            )
        size = self.model.engine.max_batch
        for first in range(0, len(tokens), size):
            some = tokens[first : first + size]
            try:
                step(first, some)
            finally:
                # Ctrl-C may arrive between the pass and this line: what the cache holds decides.
                self.tokens.extend(some[: self.core.n_past - len(self.tokens)].tolist())

    def truncate(self, n: int) -> None:
        """Keep the first ``n`` positions and forget the rest."""
        try:
            self.core.truncate(n)
        finally:
            del self.tokens[self.core.n_past :]

    def reuse_prefix(self, ids: Sequence[int]) -> int:
        """Truncate to the longest prefix shared with ``ids``, and return its length.

        At least one token of ``ids`` is left to forward, since its logits are not kept.
        """
        n = 0
        for have, want in zip(self.tokens, ids, strict=False):
            if have != want:
                break
            n += 1
        n = min(n, len(ids) - 1)
        self.truncate(max(n, 0))
        return self.n_past


@contextlib.contextmanager
def tokens_follow(sessions: Sequence[Session], ids: NDArray[np.int32]) -> Iterator[None]:
    """Sessions' lists of tokens, after one each or none was appended to their caches."""
    try:
        yield
    finally:
        for session, token in zip(sessions, ids.tolist(), strict=False):
            if session.core.n_past > len(session.tokens):
                session.tokens.append(token)


def token_array(ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    """Token ids as the engine takes them: int32 ``[len(ids)]``; ArgumentError where they are not such."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ArgumentError(
            f"token ids, expected a flat sequence of integers, got {array.dtype} {array.shape}"
        )
    if array.size and (int(array.min()) < -(2**31) or int(array.max()) >= 2**31):
        raise ArgumentError("token ids, expected 32-bit integers")
    return np.ascontiguousarray(array, dtype=np.int32)
