"""Turning a stream of tokens into text that is printable at every step."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gristmill.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes token after token. A character whose UTF-8 is spread over tokens appears with its last byte;
    bytes that cannot become one appear as U+FFFD. All that was pushed, then flushed, concatenates to
    ``Tokenizer.decode`` of the same tokens (which for a ``llama`` vocabulary also drops the space that
    encoding put in front).
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that ``token`` completes, often ``""``. Raises ArgumentError for an id out of range."""
        data = self._tokenizer.token_bytes(token)
        if self._skip_special and self._tokenizer.is_special(token):
            return ""
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What an unfinished character leaves: U+FFFD or nothing. The decoder starts anew."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
