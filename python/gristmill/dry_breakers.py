"""Finds DRY's sequence breakers, which are texts, in the tokens of a vocabulary."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gristmill import _core

# llama.cpp's limits: longer breakers and longer tails are cut.
_MAX_BYTES = 40
_MAX_TAIL = 20


class BreakerTokenizer(Protocol):
    """What :func:`resolve` needs of a tokenizer; it is quicker where there is ``all_token_bytes``, too."""

    @property
    def n_vocab(self) -> int: ...
    def token_bytes(self, token: int, /) -> bytes: ...
    def encode(self, text: str, add_special: bool = ..., parse_special: bool = ...) -> list[int]: ...


_Texts = tuple[bytes, npt.NDArray[np.int64]]
_texts_of: weakref.WeakKeyDictionary[BreakerTokenizer, _Texts] = weakref.WeakKeyDictionary()


def _texts(tokenizer: BreakerTokenizer) -> _Texts:
    """All token texts joined, and where each begins (and the last ends)."""
    with contextlib.suppress(KeyError, TypeError):  # TypeError: not every object can be referred to weakly
        return _texts_of[tokenizer]
    at_once = getattr(tokenizer, "all_token_bytes", None)
    texts: list[bytes] = at_once() if at_once else list(map(tokenizer.token_bytes, range(tokenizer.n_vocab)))
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    result = (b"".join(texts), offsets)
    with contextlib.suppress(TypeError):
        _texts_of[tokenizer] = result
    return result


def _encode(tokenizer: BreakerTokenizer, text: bytes) -> list[int] | None:
    """The tokens of a breaker's rest; None if it begins within a character and no tokens spell it."""
    with contextlib.suppress(UnicodeDecodeError):
        return tokenizer.encode(text.decode(), add_special=False)
    # A rest that is not text is spelled by the single-byte tokens that byte-level vocabularies have.
    joined, offsets = _texts(tokenizer)
    single = {joined[offsets[token]]: int(token) for token in np.flatnonzero(np.diff(offsets) == 1)}
    tokens = [single.get(byte) for byte in text]
    return None if None in tokens else [token for token in tokens if token is not None]


def resolve(tokenizer: BreakerTokenizer, breakers: Iterable[str]) -> list[tuple[int, list[int]]]:
    """Pairs of a token in which a breaker begins and the tokens that its rest takes, none if the token
    contains it all.

    A token begins a breaker if its text contains the breaker or ends with the beginning of one, as in
    llama.cpp.
    """
    texts, offsets = _texts(tokenizer)
    resolved: list[tuple[int, list[int]]] = []
    for breaker in breakers:
        wanted = breaker.encode()[:_MAX_BYTES]
        tails: dict[int, list[int] | None] = {len(wanted): []}
        for token, matched in _core.dry_match_breaker(texts, offsets, wanted):
            if matched not in tails:
                tails[matched] = _encode(tokenizer, wanted[matched:])
            tail = tails[matched]
            if tail is not None and (tail or matched == len(wanted)):
                resolved.append((token, tail[:_MAX_TAIL]))
    return resolved
