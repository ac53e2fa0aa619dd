"""Matrix products of every format by every instruction set, against dequantized weights in float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from gristmill import _core, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import blocks
from oracle.products import Array, bound, expected_error, floats_of

FORMATS = quants.formats()
AFFINE = [fmt for fmt in FORMATS if fmt.kind == "affine"]
BATCHES = {
    "decode": (1, 2, 3, 5, 8),
    "precise_decode": (1, 2, 3, 5, 8),
    "prefill": (9, 17, 70),
    "precise": (9, 17, 70),
}
ROWS = (1, 7, 16, 33, 130)

each_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
each_isa = pytest.mark.parametrize("isa", _core.built_isas())
each_mode = pytest.mark.parametrize("mode", BATCHES)


@pytest.fixture(autouse=True)
def _supported(request: pytest.FixtureRequest) -> None:
    isa = request.getfixturevalue("isa") if "isa" in request.fixturenames else None
    if isa is not None and isa not in _core.supported_isas():
        pytest.skip(f"this machine has no {isa}: its kernels are not tested")


def columns(fmt: quants.Format) -> tuple[int, ...]:
    """Row lengths: whole and odd numbers of blocks, below and above what kernels take at a time."""
    return {1: (1, 7, 33, 160, 1280), 32: (32, 64, 96, 160, 288, 1280), 256: (256, 512, 1280, 2304)}[
        fmt.block_size
    ]


@functools.cache
def packed_rows(fmt: quants.Format, k: int, kind: str) -> tuple[Array, Array]:
    """130 rows of k weights, packed and as float32: gaussians quantized, or random bytes with sane scales."""
    rng = np.random.default_rng(k)
    if kind == "random":
        packed = blocks.random_blocks(fmt.name, max(ROWS), k, rng, 0.05)
    else:
        packed = quants.quantize(rng.standard_normal((max(ROWS), k)) * 0.05, fmt.name)
    return packed, quants.dequantize(packed, fmt.name, (max(ROWS), k))


def activations(n: int, k: int, seed: int = 0) -> Array:
    """Gaussians with a few large channels, rows of very different sizes, and stretches of zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, k))
    x *= np.where(rng.random(k) < 0.02, 40, 1)
    x *= 10.0 ** rng.integers(-4, 4, (n, 1))
    for row in range(2, n, 4):
        x[row, : k // 2] = 0
    return x.astype(np.float32)


def multiply(packed: Array, fmt: quants.Format, x: Array, isa: str, mode: str) -> Array:
    return quants.matmul(packed, fmt.name, (len(packed), x.shape[1]), x, isa=isa, mode=mode)


def worst(
    y: Array, packed: Array, fmt: quants.Format, weights: Array, x: Array, isa: str, mode: str
) -> float:
    """Largest error in units of what is allowed."""
    error = np.abs(y - x.astype(np.float64) @ weights.astype(np.float64).T)
    allowed = bound(packed, fmt, weights, x, isa, mode)
    assert not np.any(error[allowed == 0]), "an exact zero was missed"
    return float((error / np.where(allowed == 0, 1, allowed)).max())


@each_format
@each_isa
@each_mode
@pytest.mark.parametrize("kind", ["gaussian", "random"])
def test_within_bound(fmt: quants.Format, isa: str, mode: str, kind: str) -> None:
    for k in columns(fmt):
        packed, weights = packed_rows(fmt, k, kind)
        for n in BATCHES[mode]:
            x = activations(n, k, seed=n)
            for rows in ROWS:
                y = multiply(packed[:rows], fmt, x, isa, mode)
                assert y.shape == (n, rows) and y.dtype == np.float32
                ratio = worst(y, packed[:rows], fmt, weights[:rows], x, isa, mode)
                assert ratio <= 1, f"rows {rows}, columns {k}, batch {n}: {ratio:.3f} of the bound"


def noise_limits(fmt: quants.Format, isa: str, mode: str) -> tuple[float, float]:
    """Of the error in units of the expected one. Float32 sums err as much as values of 16 bits do."""
    if _core.activation_bits(isa, fmt.type_id, mode) == 32:
        return 0, 0.1
    return 0.9, 3 if floats_of(fmt, isa, mode) == 16 else 1.1


@each_format
@each_isa
@each_mode
def test_error_is_that_of_rounding(fmt: quants.Format, isa: str, mode: str) -> None:
    """The bound is for the worst case. On random data the error is the noise of rounding alone."""
    packed, weights = packed_rows(fmt, 1280, "gaussian")
    x = np.random.default_rng(5).standard_normal((64, 1280)).astype(np.float32)
    error = multiply(packed, fmt, x, isa, mode) - x.astype(np.float64) @ weights.astype(np.float64).T
    noise = np.sqrt(np.mean((error / expected_error(fmt, weights, x, isa, mode)) ** 2))
    least, most = noise_limits(fmt, isa, mode)
    assert least < noise < most


@each_format
@each_isa
@pytest.mark.parametrize("mode", ["prefill", "precise"])
def test_many_tokens(fmt: quants.Format, isa: str, mode: str) -> None:
    """Enough to unpack weights beside the products of the ones before, and more than L2 holds."""
    for k in (1280, 2816) if fmt.block_size > 1 else (160, 1280):
        packed, weights = packed_rows(fmt, k, "gaussian")
        x = activations(200, k)
        for rows in (1, 33, 130):
            y = multiply(packed[:rows], fmt, x, isa, mode)
            ratio = worst(y, packed[:rows], fmt, weights[:rows], x, isa, mode)
            assert ratio <= 1, f"rows {rows}, columns {k}: {ratio:.3f} of the bound"


@each_isa
@each_mode
@settings(deadline=None, max_examples=40)
@given(
    fmt=st.sampled_from(FORMATS),
    rows=st.integers(1, 70),
    n_blocks=st.integers(1, 20),
    n=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(
    isa: str, mode: str, fmt: quants.Format, rows: int, n_blocks: int, n: int, seed: int
) -> None:
    k = n_blocks * fmt.block_size
    packed = blocks.random_blocks(fmt.name, rows, k, np.random.default_rng(seed), 1.0)
    weights = quants.dequantize(packed, fmt.name, (rows, k))
    x = activations(n, k, seed)
    assert worst(multiply(packed, fmt, x, isa, mode), packed, fmt, weights, x, isa, mode) <= 1
