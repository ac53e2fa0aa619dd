"""Backslash escapes in text given on the command line, read the way llama.cpp reads them."""

from __future__ import annotations

import re

from gristmill.errors import ArgumentError, Error

_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|([nrt'\"\\]))")
_SIMPLE = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}


def _replace(match: re.Match[bytes]) -> bytes:
    hex_digits, letter = match.groups()
    return bytes([int(hex_digits, 16)]) if hex_digits else _SIMPLE[letter]


def process_escapes(text: str, what: str = "text") -> str:
    r"""Replaces ``\n \r \t \' \" \\`` and ``\xHH``; every other backslash stays as it is.

    ``\xHH`` names one byte, so ``\xe6\x97\xa5`` is one character. ``what`` names the text in the
    ``ArgumentError`` raised when the bytes that result are not UTF-8 (a tokenizer could not read them).
    """
    # Arguments that are no UTF-8 arrive from the operating system as lone surrogates: undo that, so that
    # the strict decoding below reports them like any other stray byte.
    raw = text.encode("utf-8", "surrogateescape")
    return decode_utf8(_ESCAPE.sub(_replace, raw), what)


def decode_utf8(raw: bytes, what: str, kind: type[Error] = ArgumentError) -> str:
    """``raw`` as text, or an error of type ``kind`` that says which byte of ``what`` is at fault."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise kind(f"{what}: byte 0x{raw[error.start]:02x} at {error.start} is not UTF-8") from None
