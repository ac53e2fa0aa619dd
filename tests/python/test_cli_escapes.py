"""Backslash escapes against a plain reading of llama.cpp's rules, one character at a time."""

from __future__ import annotations

import pytest
from gristmill import ArgumentError
from gristmill.cli.escapes import process_escapes
from hypothesis import given
from hypothesis import strategies as st

HEX = b"0123456789abcdefABCDEF"
SIMPLE = {ord("n"): 10, ord("r"): 13, ord("t"): 9, ord("'"): 39, ord('"'): 34, ord("\\"): 92}


def reference(raw: bytes) -> bytes:
    out, i = bytearray(), 0
    while i < len(raw):
        following = raw[i + 1 : i + 2]
        digits = raw[i + 2 : i + 4]
        if raw[i] != 0x5C or not following:
            out.append(raw[i])
            i += 1
        elif following[0] in SIMPLE:
            out.append(SIMPLE[following[0]])
            i += 2
        elif following == b"x" and len(digits) == 2 and all(d in HEX for d in digits):
            out.append(int(digits, 16))
            i += 4
        else:
            out += raw[i : i + 2]
            i += 2
    return bytes(out)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"a\nb", "a\nb"),
        (r"\t\r\'\"", "\t\r'\""),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        (r"\x41\x6a", "Aj"),
        (r"\xe6\x97\xa5", "日"),
        (r"\x4", r"\x4"),
        (r"\xg0", r"\xg0"),
        (r"\q\0", r"\q\0"),
        ("end\\", "end\\"),
        (r"日\n本", "日\n本"),
        ("", ""),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert process_escapes(text) == expected


@given(st.text(st.sampled_from("\\nrtx'\"4aG日 ") | st.characters(exclude_categories=["Cs"]), max_size=40))
def test_against_the_reference(text: str) -> None:
    expected = reference(text.encode())
    try:
        wanted = expected.decode()
    except UnicodeDecodeError:
        with pytest.raises(ArgumentError, match="is not UTF-8"):
            process_escapes(text)
    else:
        assert process_escapes(text) == wanted


@given(st.binary(max_size=20))
def test_arguments_that_are_not_utf8(raw: bytes) -> None:
    """They arrive with surrogates in place of stray bytes, and are either text or refused."""
    text = raw.decode("utf-8", "surrogateescape")
    expected = reference(raw)
    try:
        wanted = expected.decode()
    except UnicodeDecodeError:
        with pytest.raises(ArgumentError, match="is not UTF-8"):
            process_escapes(text, "--prompt")
    else:
        assert process_escapes(text, "--prompt") == wanted
