"""Byte-level byte-pair encoding on top of the ``tokenizers`` library."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import numpy as np

from gristmill.errors import ArgumentError, GGUFError, GristmillWarning
from gristmill.messages import quoted
from gristmill.pretokenizers import PRE_TOKENIZERS
from gristmill.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

# Text is encoded in portions of about this many characters: the library keeps some 300 bytes for each token.
_PORTION = 1 << 17
# The longest text without a place to cut that is tried; the library's regex engine gives up beyond 10 million
# steps in one match.
_MAX_UNCUT = 4_000_000
# Where every supported split has a boundary and neither side changes it: behind a line break between a
# printable ASCII character and a letter. No pattern matches across it, none looks behind, the only one that
# looks ahead gives a single line break the same piece before a letter as at the end, and nothing composes
# with a line break.
_CUT = re.compile(r"(?<=[!-~]\n)(?=[A-Za-z])")


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary: the printable Latin-1 characters
    stand for themselves, all others for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTES = byte_alphabet()
_BYTE_OF_CODE = np.full(max(map(ord, _BYTES)) + 2, -1, np.int16)  # -1: stands for no byte; so does all beyond
_BYTE_OF_CODE[[ord(char) for char in _BYTES]] = list(_BYTES.values())


class BytePairCodec:
    """Encodes with two engines that share one model; one recognizes user-defined tokens, the other control
    tokens as well.

    Tokens recognized by their text are unknown to the model itself: their places hold names that no text can
    spell, so that merging never arrives at a control token. The engines number them behind the vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, pre: str) -> None:
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        rules = PRE_TOKENIZERS[pre]
        self.add_bos = rules.add_bos
        texts = vocabulary.texts
        user, control = vocabulary.of_kind(USER_DEFINED), vocabulary.of_kind(CONTROL, UNKNOWN)
        apart = {*user, *control, *_unspellable(texts)}
        self._apart = {i: texts[i].encode("utf-8", "surrogateescape") for i in apart}
        names = vocabulary.index.copy()
        for i in apart:
            names.pop(texts[i], None)
            names[f"\0{i}"] = i
        pairs = _split_merges(vocabulary.source, vocabulary.merges)
        try:
            self._model = BPE(names, pairs, ignore_merges=rules.ignore_merges)
        except Exception:  # the library has no narrower type; the usual cause is a merge of unknown tokens
            pairs = _known_pairs(vocabulary, pairs, names)
            self._model = BPE(names, pairs, ignore_merges=rules.ignore_merges)
        self._n_vocab = len(texts)
        self._missing = frozenset(byte for char, byte in _BYTES.items() if char not in names)
        self._plain, self._parsing = Tokenizer(self._model), Tokenizer(self._model)
        self._recognized: dict[int, int] = {}  # the engines' numbers -> ids
        for engine, ids in ((self._plain, user), (self._parsing, user + control)):
            rules.install(engine)
            self._recognize(engine, [i for i in ids if _is_text(texts[i])], texts)
        self._cuttable = not any("\n" in texts[i] for i in user + control)

    def _recognize(self, engine: Engine, ids: list[int], texts: list[str]) -> None:
        from tokenizers import AddedToken

        engine.add_tokens([AddedToken(texts[i], normalized=False) for i in ids])
        for i in ids:
            number = engine.token_to_id(texts[i])
            assert number is not None and self._recognized.get(number, i) == i
            self._recognized[number] = i

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Raises UnicodeEncodeError for a lone surrogate, ArgumentError for what no token spells."""
        utf8 = text.encode()
        engine = self._parsing if parse_special else self._plain
        ids: list[int] = []
        for portion in self._portions(text):
            ids += engine.encode(portion, add_special_tokens=False).ids
        if self._recognized and ids and max(ids) >= self._n_vocab:
            ids = [self._recognized.get(i, i) for i in ids]
        if self._missing and not self._missing.isdisjoint(utf8):
            self._warn_of_loss(text, utf8, ids, engine)
        return ids

    def _portions(self, text: str) -> Iterator[str]:
        start = 0
        while len(text) - start > 2 * _PORTION and self._cuttable:
            cut = _CUT.search(text, start + _PORTION)
            if cut is None:
                break
            yield from self._bounded(text[start : cut.start()])
            start = cut.start()
        yield from self._bounded(text[start:])

    def _bounded(self, portion: str) -> Iterator[str]:
        if len(portion) > _MAX_UNCUT:
            raise ArgumentError(
                f"text: {len(portion)} characters without a line break before a letter cannot be tokenized, "
                f"the limit is {_MAX_UNCUT}"
            )
        yield portion

    def _warn_of_loss(self, text: str, utf8: bytes, ids: list[int], engine: Engine) -> None:
        """Bytes without a token are dropped, as the models' own tokenizers do; the user should know."""
        if engine.normalizer is not None:
            utf8 = engine.normalizer.normalize_str(text).encode()
        lost = len(utf8) - sum(len(self.token_bytes(i)) for i in ids)
        if lost > 0:
            byte = min(self._missing.intersection(utf8))
            warnings.warn(
                f"{lost} bytes of the text are dropped: the vocabulary has no token for byte 0x{byte:02X}",
                GristmillWarning,
                stacklevel=4,
            )

    def token_bytes(self, token: int) -> bytes:
        apart = self._apart.get(token)
        if apart is not None:
            return apart
        text = self._plain.id_to_token(token)
        assert text is not None
        try:
            return bytes([_BYTES[char] for char in text])
        except KeyError:  # not spelled in the byte alphabet: padding, or a token added later
            return text.encode()

    def all_token_bytes(self) -> list[bytes]:
        """``token_bytes`` of every token, through one array of characters: faster than a call for each."""
        names = [name or "" for name in map(self._plain.id_to_token, range(self._n_vocab))]
        codes = np.frombuffer("".join(names).encode("utf-32-le"), "<u4")
        byte = _BYTE_OF_CODE[np.minimum(codes, len(_BYTE_OF_CODE) - 1)]
        ends = np.cumsum(np.fromiter(map(len, names), np.int64, len(names)))
        joined, starts = byte.astype(np.uint8).tobytes(), [0, *ends[:-1].tolist()]
        texts = [joined[start:end] for start, end in zip(starts, ends.tolist(), strict=True)]
        for token in np.unique(np.searchsorted(ends, np.flatnonzero(byte < 0), "right")).tolist():
            texts[token] = names[token].encode()  # not spelled in the byte alphabet, as in token_bytes
        for token, text in self._apart.items():
            texts[token] = text
        return texts

    def strips_leading_space(self) -> bool:
        return False


def _is_text(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _unspellable(texts: list[str]) -> list[int]:
    """Tokens without text, and those whose bytes in the file are not UTF-8."""
    empty = [i for i, text in enumerate(texts) if not text]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return empty + [i for i, text in enumerate(texts) if not _is_text(text)]
    return empty


def _split_merges(source: str, merges: list[str]) -> list[tuple[str, str]]:
    if len(set(merges)) != len(merges):
        merges = list(dict.fromkeys(merges))  # the first mention gives the rank
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if not set(map(len, pairs)) <= {2}:
        bad = next(i for i, pair in enumerate(pairs) if len(pair) != 2)
        raise GGUFError(f"{source}: merge {bad} is {quoted(merges[bad])}, expected two tokens")
    return cast(list[tuple[str, str]], pairs)


def _known_pairs(
    vocabulary: Vocabulary, pairs: list[tuple[str, str]], names: dict[str, int]
) -> list[tuple[str, str]]:
    """Leave out merges from or to tokens that are recognized by their text. Raises GGUFError for a merge of
    anything that is no token at all."""
    kept: list[tuple[str, str]] = []
    for rank, (left, right) in enumerate(pairs):
        for text in (left, right, left + right):
            if text not in vocabulary.index:
                raise GGUFError(
                    f"{vocabulary.source}: merge {rank} is {quoted(left + ' ' + right)}, "
                    f"but {quoted(text)} is no token"
                )
        if left in names and right in names and left + right in names:
            kept.append((left, right))
    return kept
