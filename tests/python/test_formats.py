"""Every registered block format against the gguf package: numbers, sizes, and dequantization bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gristmill import quants
from hypothesis import given, settings
from hypothesis import strategies as st

FORMATS = quants.formats()

# Halves that conversions stumble over: zeros, subnormals, the extremes, infinities, quiet and signalling NaN.
HALVES = [
    0x0000,
    0x8000,
    0x0001,
    0x83FF,
    0x0400,
    0x7BFF,
    0xFBFF,
    0x7C00,
    0xFC00,
    0x7C01,
    0x7E00,
    0xFFFF,
    0x3C00,
]

each_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)


def assert_dequantizes_like_gguf(fmt: quants.Format, raw: np.ndarray) -> None:
    """raw: uint8 [n_blocks, type_size]. Equal as bits; any NaN equals any NaN."""
    ours = quants.dequantize(raw, fmt.name, (len(raw), fmt.block_size))
    with np.errstate(all="ignore"):
        theirs = np.asarray(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[fmt.name]), np.float32)
    assert ours.shape == theirs.shape
    same = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    block, weight = np.argwhere(~same)[0] if not same.all() else (0, 0)
    assert same.all(), (
        f"{np.count_nonzero(~same)} differ; block {raw[block].tobytes().hex()} weight {weight}: "
        f"{ours[block, weight]!r}, gguf {theirs[block, weight]!r}"
    )


def test_registry_has_the_formats_of_the_first_model() -> None:
    """The formats that QwQ-32B ships in, and those its mixed files hold."""
    names = {fmt.name for fmt in FORMATS}
    assert len(names) == len(FORMATS)
    assert names >= {"F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "Q3_K", "Q2_K"}


@each_format
def test_numbers_and_sizes_are_ggufs(fmt: quants.Format) -> None:
    known = gguf.GGMLQuantizationType[fmt.name]
    assert fmt.type_id == known.value
    assert (fmt.block_size, fmt.type_size) == gguf.GGML_QUANT_SIZES[known]
    assert fmt.kind == ("float" if fmt.block_size == 1 else "affine")


@each_format
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), n_blocks=st.integers(1, 300))
def test_dequantize_random_bytes(fmt: quants.Format, seed: int, n_blocks: int) -> None:
    raw = np.random.default_rng(seed).integers(0, 256, (n_blocks, fmt.type_size), np.uint8)
    assert_dequantizes_like_gguf(fmt, raw)


@each_format
def test_dequantize_with_a_special_half_at_every_offset(fmt: quants.Format) -> None:
    """Wherever a format keeps its scales, they are infinite, NaN, subnormal or zero in one of the blocks."""
    rng = np.random.default_rng(0)
    offsets = range(0, fmt.type_size - 1, 2)
    raw = rng.integers(0, 256, (len(offsets), len(HALVES), fmt.type_size), np.uint8)
    for i, offset in enumerate(offsets):
        raw[i, :, offset : offset + 2] = np.array(HALVES, "<u2").view(np.uint8).reshape(-1, 2)
    assert_dequantizes_like_gguf(fmt, raw.reshape(-1, fmt.type_size))


@each_format
def test_dequantize_constant_bytes(fmt: quants.Format) -> None:
    """All 256 blocks of one repeated byte: every level and every scale code at once."""
    assert_dequantizes_like_gguf(fmt, np.repeat(np.arange(256, dtype=np.uint8)[:, None], fmt.type_size, 1))


@each_format
def test_dequantize_each_bit_alone(fmt: quants.Format) -> None:
    """A block of ones in half precision with one bit flipped, for each bit: a misplaced bit shows alone."""
    one = np.resize(np.array([0x3C00], "<u2").view(np.uint8), fmt.type_size)
    flips = np.packbits(np.eye(fmt.type_size * 8, dtype=np.uint8), axis=1, bitorder="little")
    assert_dequantizes_like_gguf(fmt, one ^ flips)


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.type_size == 2], ids=lambda fmt: fmt.name)
def test_dequantize_every_half(fmt: quants.Format) -> None:
    assert_dequantizes_like_gguf(fmt, np.arange(65536, dtype="<u2").view(np.uint8).reshape(-1, 2))
