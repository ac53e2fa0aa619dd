"""Strings of a header, walked and decoded in C++, against the same in Python."""

from __future__ import annotations

import struct

import pytest
from gristmill import ArgumentError, _core
from hypothesis import given
from hypothesis import strategies as st

STRINGS = st.lists(st.binary(max_size=20), max_size=20)


def pack(strings: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(s)) + s for s in strings)


@given(strings=STRINGS, before=st.binary(max_size=9), after=st.binary(max_size=9))
def test_round_trip(strings: list[bytes], before: bytes, after: bytes) -> None:
    data = before + pack(strings) + after
    end = len(data) - len(after)
    texts, position = _core.decode_strings(data, len(before), len(strings))
    assert [text.encode("utf-8", "surrogateescape") for text in texts] == strings
    assert position == end
    assert _core.skip_strings(bytearray(data), len(before), len(strings)) == (end, 0)


@given(strings=STRINGS, cut=st.integers(1, 30))
def test_data_that_ends_early(strings: list[bytes], cut: int) -> None:
    data = pack(strings)[:-cut]
    if len(data) < len(pack(strings)):
        with pytest.raises(ArgumentError, match="where the data does"):
            _core.decode_strings(data, 0, len(strings))
    position, left = _core.skip_strings(data, 0, len(strings))
    # What is left begins behind the data or has no whole length in it; else the end of the last is missing.
    assert position + 8 * left > len(data) or not strings
    assert left or position == len(pack(strings))


@given(data=st.binary(max_size=60), pos=st.integers(0, 2**64 - 1), count=st.integers(0, 2**64 - 1))
def test_any_bytes(data: bytes, pos: int, count: int) -> None:
    for at in (pos, pos % (len(data) + 1)):
        for n in (count, count % 8):
            assert _core.skip_strings(data, at, n)[1] <= n
            try:
                texts, end = _core.decode_strings(data, at, n)
            except ArgumentError:
                continue
            assert len(texts) == n
            assert at <= end <= len(data)


@pytest.mark.parametrize("length", [2**62, 2**63, 2**64 - 1])
def test_absurd_lengths(length: int) -> None:
    data = pack([b"ab"]) + struct.pack("<Q", length) + b"cd"
    assert _core.skip_strings(data, 0, 3) == (10, 2)
    with pytest.raises(ArgumentError):
        _core.decode_strings(data, 0, 2)


def test_what_is_no_buffer() -> None:
    with pytest.raises(TypeError):
        _core.decode_strings("text", 0, 0)
