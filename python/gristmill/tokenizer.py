"""Text to token ids and back, from the vocabulary in a GGUF file."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from gristmill.errors import ArgumentError, GGUFError, GristmillWarning, UnsupportedModelError
from gristmill.gguf import GGUFFile
from gristmill.messages import quoted
from gristmill.metadata import Metadata
from gristmill.stream_decoder import StreamDecoder
from gristmill.vocabulary import CONTROL, KEYS, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    from gristmill.gguf import GGUFFile as _File

__all__ = ["KEYS", "StreamDecoder", "Tokenizer"]


class Codec(Protocol):
    """One family of vocabularies: how text becomes ids, and the bytes each id stands for."""

    add_bos: bool  # where the file does not say

    def encode(self, text: str, parse_special: bool) -> list[int]: ...
    def token_bytes(self, token: int) -> bytes: ...
    def all_token_bytes(self) -> list[bytes]: ...
    def strips_leading_space(self) -> bool: ...


class Tokenizer:
    """The tokenizer of a GGUF file; :meth:`from_gguf` makes one. Safe to use from several threads.

    ``n_vocab`` tokens have the ids 0 to ``n_vocab - 1``. ``bos_id``, ``eos_id`` and ``eot_id`` (end of turn)
    are None where the vocabulary has no such token. ``eog_ids`` are all ids after which generation ends.
    ``add_bos`` and ``add_eos`` say what ``encode(add_special=True)`` adds. ``model`` and ``pre`` are the
    names in the file.
    """

    KEYS: tuple[str, ...] = KEYS  # the metadata keys that from_gguf reads

    def __init__(self, metadata: Metadata) -> None:
        self.model = metadata.get_str("tokenizer.ggml.model")
        vocabulary = Vocabulary.read(metadata)
        self._codec, self.pre = _make_codec(self.model, vocabulary, metadata)
        self._kinds = bytes(vocabulary.kinds)
        self.n_vocab = len(vocabulary.texts)
        self.bos_id = vocabulary.ids.get("bos")
        self.eos_id = vocabulary.ids.get("eos")
        self.eot_id = vocabulary.eot_id
        self.eog_ids = vocabulary.eog_ids
        silent = self._codec.add_bos and self.bos_id is not None
        self.add_bos = metadata.get_bool("tokenizer.ggml.add_bos_token", silent)
        self.add_eos = metadata.get_bool("tokenizer.ggml.add_eos_token", False)
        for added, name, token in ((self.add_bos, "bos", self.bos_id), (self.add_eos, "eos", self.eos_id)):
            if added and token is None:
                raise GGUFError(
                    f"{vocabulary.source}: tokenizer.ggml.add_{name}_token is true, "
                    f"but tokenizer.ggml.{name}_token_id is missing"
                )

    @classmethod
    def from_gguf(
        cls, source: str | os.PathLike[str] | _File, overrides: Mapping[str, object] | None = None
    ) -> Tokenizer:
        """Build the tokenizer of a GGUF file, given as its path or open. No tensor is looked at.

        ``overrides`` replaces metadata, as in ``{"tokenizer.ggml.pre": "qwen2"}``. Raises GGUFError for a
        vocabulary that is malformed, UnsupportedModelError for a kind that is not supported.
        """
        if isinstance(source, GGUFFile):
            metadata = source.metadata
        else:
            with GGUFFile.open(source, check_extents=False) as file:
                metadata = file.metadata
        return cls(metadata.with_overrides(overrides) if overrides else metadata)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The token ids of ``text``.

        ``add_special`` adds the tokens for begin and end that the file asks for. ``parse_special`` makes the
        text of a control token, such as ``<|im_end|>``, that token; without it no text ever becomes a control
        token, which is what text from users needs. Tokens that the file calls user-defined, such as
        ``<think>`` in many vocabularies, are recognized either way.

        Raises ArgumentError for what is not text: another type, a lone surrogate.
        """
        if not isinstance(text, str):
            raise ArgumentError(f"text: expected str, got {type(text).__name__}")
        try:
            ids = self._codec.encode(text, parse_special) if text else []
        except UnicodeEncodeError as error:
            raise ArgumentError(
                f"text: character {error.start} is U+{ord(text[error.start]):04X}, half of a surrogate pair, "
                "which has no UTF-8 form"
            ) from None
        if add_special and self.add_bos and self.bos_id is not None:
            if ids[:1] == [self.bos_id]:
                warnings.warn(
                    f"the text begins with the token {quoted(self.token_text(self.bos_id))} and one more is "
                    "added in front; encode with add_special=False to keep one",
                    GristmillWarning,
                    stacklevel=2,
                )
            ids.insert(0, self.bos_id)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD. ``skip_special`` leaves control tokens
        out. Raises ArgumentError for an id out of range.
        """
        checked = [self._check(token) for token in ids]
        if skip_special:
            checked = [token for token in checked if not self.is_special(token)]
        text = b"".join(map(self._codec.token_bytes, checked)).decode("utf-8", "replace")
        if text.startswith(" ") and self._codec.strips_leading_space():
            first = next((token for token in checked if not self.is_special(token)), None)
            if first is not None and first == checked[0]:
                text = text[1:]
        return text

    def stream(self, skip_special: bool = False) -> StreamDecoder:
        """A decoder to push tokens into one by one."""
        return StreamDecoder(self, skip_special)

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for, perhaps a part of a character. Raises ArgumentError out of range."""
        return self._codec.token_bytes(self._check(token))

    def all_token_bytes(self) -> list[bytes]:
        """``token_bytes`` of every id in order, made anew by each call; faster than one by one."""
        return self._codec.all_token_bytes()

    def token_text(self, token: int) -> str:
        """``token_bytes`` as text, with U+FFFD for what is not UTF-8."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def is_special(self, token: int) -> bool:
        """Whether a token is a control (or unknown) token, no text. Raises ArgumentError out of range."""
        return self._kinds[self._check(token)] in (CONTROL, UNKNOWN)

    def _check(self, token: int) -> int:
        try:
            index = operator.index(token)
        except TypeError:
            raise ArgumentError(f"token id: expected int, got {type(token).__name__}") from None
        if not 0 <= index < self.n_vocab:
            raise ArgumentError(f"token id {index} is out of range, the vocabulary has {self.n_vocab} tokens")
        return index

    def __repr__(self) -> str:
        return f"<Tokenizer {self.model}/{self.pre}: {self.n_vocab} tokens>"


def _make_codec(model: str, vocabulary: Vocabulary, metadata: Metadata) -> tuple[Codec, str]:
    if model == "gpt2":
        from gristmill.bpe import BytePairCodec

        pre = _pre_name(vocabulary.source, metadata)
        if "tokenizer.ggml.merges" not in metadata:
            raise GGUFError(
                f"{vocabulary.source}: key 'tokenizer.ggml.merges' is missing, expected array of str"
            )
        return BytePairCodec(vocabulary, pre), pre
    raise UnsupportedModelError(
        f"{vocabulary.source}: tokenizer.ggml.model is {quoted(model)}; supported is gpt2 (byte-level BPE)"
    )


def _pre_name(source: str, metadata: Metadata) -> str:
    from gristmill.pretokenizers import PRE_TOKENIZERS

    # Read, so that an override of it is known: byte-level vocabularies never put a space in front.
    metadata.get_bool("tokenizer.ggml.add_space_prefix", False)
    name = metadata.get_str("tokenizer.ggml.pre", "")
    if not name:
        warnings.warn(
            f"{source}: tokenizer.ggml.pre is missing, so text is split by the rules named default, perhaps "
            "not as the model was trained; name others with --override-kv tokenizer.ggml.pre=str:NAME",
            GristmillWarning,
            stacklevel=5,
        )
        return "default"
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{source}: tokenizer.ggml.pre is {quoted(name)}; supported are "
            f"{', '.join(sorted(PRE_TOKENIZERS))}; if it splits text as one of these, name that, as in "
            "--override-kv tokenizer.ggml.pre=str:qwen2"
        )
    return name
