"""Rows with channels far larger than the others, which 8-bit activations keep apart.

The bound of ``oracle.products`` knows which are kept apart; a few statements here do without it.
"""

from __future__ import annotations

import numpy as np
import pytest
from gristmill import quants
from oracle.products import Array, expected_error, floats_of
from test_kernels import AFFINE, _supported, each_isa, multiply, noise_limits, packed_rows, worst

__all__ = ["_supported"]

K = 1280  # 40 groups: four outliers a row
SHORT = 512  # 16 groups: two
N = 40  # rows, which leave no tile of four unfilled; the last rows of 41 are a tile of one

each_affine = pytest.mark.parametrize("fmt", AFFINE, ids=lambda fmt: fmt.name)
each_mode = pytest.mark.parametrize("mode", ["prefill", "precise", "decode", "precise_decode"])


def gaussian(n: int, k: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def with_outliers(x: Array, sizes: list[float], seed: int = 4) -> tuple[Array, Array]:
    """x with values of these sizes, of either sign, in as many groups of each row; and where, bool."""
    rng = np.random.default_rng(seed)
    y, where = x.copy(), np.zeros(x.shape, bool)
    for row in range(len(x)):
        groups = rng.permutation(x.shape[1] // 32)[: len(sizes)]
        columns = 32 * groups + rng.integers(0, 32, len(sizes))
        y[row, columns] = sizes * rng.choice([-1, 1], len(sizes))
        where[row, columns] = True
    return y, where


def errors(packed: Array, fmt: quants.Format, weights: Array, x: Array, isa: str, mode: str) -> Array:
    return multiply(packed, fmt, x, isa, mode) - x.astype(np.float64) @ weights.astype(np.float64).T


def root_mean_square(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@each_affine
@each_isa
@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize("size", [64.0, 1024.0, 1e6])
def test_one_huge_channel_blurs_no_other(fmt: quants.Format, isa: str, mode: str, size: float) -> None:
    """The error is what 15 bits have on the same row and 8 bits on the row without it, not their product.

    Sharing a scale with a value of 64, 31 others would lose 4 bits more: 2.5 times this error.
    """
    packed, weights = packed_rows(fmt, K, "gaussian")
    plain = gaussian(N + 1, K)
    x, where = with_outliers(plain, [size])
    plain[where] = 0
    error = errors(packed, fmt, weights, x, isa, mode)
    if floats_of(fmt, isa, mode):  # nothing is shared; the error of the size itself stays
        assert root_mean_square(error) < 1.1 * root_mean_square(expected_error(fmt, weights, x, isa, mode))
        return
    of_size = errors(packed, fmt, weights, x, isa, {"prefill": "precise", "decode": "precise_decode"}[mode])
    of_others = errors(packed, fmt, weights, plain, isa, mode)
    allowed = np.hypot(root_mean_square(of_size), root_mean_square(of_others))
    assert root_mean_square(error) < 1.1 * allowed
    assert worst(multiply(packed, fmt, x, isa, mode), packed, fmt, weights, x, isa, mode) <= 1


CASES = {
    "one": (K, [64.0]),
    "as many as there is room for": (K, [50.0, 60.0, 70.0, 80.0]),
    "one too many": (K, [50.0, 60.0, 70.0, 80.0, 90.0]),
    "many too many": (K, [float(size) for size in range(20, 60, 2)]),
    "of very different sizes": (K, [20.0, 300.0, 5e3, 8e4, 1e6]),
    "two in a short row": (SHORT, [64.0, 1024.0]),
    "three in a short row": (SHORT, [64.0, 100.0, 1024.0]),
    "hardly any": (K, [7.0]),
}


@each_affine
@each_isa
@each_mode
@pytest.mark.parametrize("case", CASES)
def test_outliers_within_bound(fmt: quants.Format, isa: str, mode: str, case: str) -> None:
    """Also where there are more than a row may keep apart: those of least gain stay in their groups."""
    k, sizes = CASES[case]
    packed, weights = packed_rows(fmt, k, "gaussian")
    x, _ = with_outliers(gaussian(N + 1, k), sizes)
    y = multiply(packed, fmt, x, isa, mode)
    assert worst(y, packed, fmt, weights, x, isa, mode) <= 1
    if max(sizes) <= 1e4:  # beyond it float32 sums err as much as 15 bits do
        error = y - x.astype(np.float64) @ weights.astype(np.float64).T
        noise = np.sqrt(np.mean((error / expected_error(fmt, weights, x, isa, mode)) ** 2))
        least, most = noise_limits(fmt, isa, mode)
        assert least < noise < most


@each_affine
@each_isa
@each_mode
def test_two_of_one_group(fmt: quants.Format, isa: str, mode: str) -> None:
    """Only one of a group can be kept apart, and only if it is twice the second."""
    packed, weights = packed_rows(fmt, K, "gaussian")
    for second in (30.0, 33.0, 64.0):
        x, where = with_outliers(gaussian(9, K), [64.0])
        x[np.roll(where.reshape(9, -1, 32), 16, axis=2).reshape(x.shape)] = second
        assert worst(multiply(packed, fmt, x, isa, mode), packed, fmt, weights, x, isa, mode) <= 1


@each_affine
@each_isa
@each_mode
def test_zeros(fmt: quants.Format, isa: str, mode: str) -> None:
    """A row of zeros is exactly zero; a row of one value alone has the error of 15 bits, wherever it is.

    Where values are floats, such a row has the error of every other.
    """
    packed, weights = packed_rows(fmt, K, "gaussian")
    x = np.zeros((K // 7 + 1, K), np.float32)
    for row, column in enumerate(range(0, K, 7)):
        x[row, column] = -3.7 if row % 2 else 3.7
    x[5] = x[8] = 0
    y = multiply(packed, fmt, x, isa, mode)
    assert not y[[5, 8]].any()
    precise = {"prefill": "precise", "decode": "precise_decode"}.get(mode, mode)
    assert worst(y, packed, fmt, weights, x, isa, mode if floats_of(fmt, isa, mode) else precise) <= 1


@each_affine
@each_isa
@each_mode
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_beside_outliers(fmt: quants.Format, isa: str, mode: str, value: float) -> None:
    """In an outlier's place, in its group, and where there is none: its row is not finite, others stay."""
    packed, _ = packed_rows(fmt, K, "gaussian")
    x, where = with_outliers(gaussian(6, K), [40.0, 50.0, 60.0, 70.0, 80.0])
    whole = multiply(packed, fmt, x, isa, mode)
    outlier = int(np.flatnonzero(where[2])[0])
    elsewhere = int(np.flatnonzero(~where[2].reshape(-1, 32).any(1))[0]) * 32 + 9
    for column in (outlier, outlier ^ 1, outlier ^ 16, elsewhere):
        spoiled = x.copy()
        spoiled[2, column] = value
        y = multiply(packed, fmt, spoiled, isa, mode)
        assert not np.isfinite(y[2]).any(), f"column {column}, outlier at {outlier}"
        assert np.array_equal(np.delete(y, 2, 0), np.delete(whole, 2, 0))


@each_isa
@each_mode
@pytest.mark.parametrize("size", [1e-44, 1e-31, 1e-25, 1e-20, 1e-10, 1e10, 9e17, 2e18, 1e25, 1e33])
def test_outliers_of_any_magnitude(isa: str, mode: str, size: float) -> None:
    """64 times the others, whatever those are: squares of float32 values would over- or underflow."""
    fmt = quants.format_named("Q4_1")
    packed, weights = packed_rows(fmt, K, "gaussian")
    x = (with_outliers(gaussian(9, K).astype(np.float64), [64.0])[0] * (size / 64)).astype(np.float32)
    y = multiply(packed, fmt, x, isa, mode)
    assert np.isfinite(y).all()
    exact = x.astype(np.float64) @ weights.astype(np.float64).T
    # Groups below 2^-100 count as zero, and so is what they would add.
    smallest = 2.0**-100 * np.abs(weights).sum(1)
    allowed = 64.0 / 2 / 127 * (size / 64) * np.abs(weights).sum(1)
    assert (np.abs(y - exact) <= allowed + smallest).all()


@each_affine
@each_isa
@pytest.mark.parametrize("k", [288, 352, 576, K])
def test_alone_as_in_company(fmt: quants.Format, isa: str, k: int) -> None:
    """Bit for bit: outliers in every group in turn, the last and partial ones too, and zeros."""
    k = -(-k // fmt.block_size) * fmt.block_size
    packed, _ = packed_rows(fmt, k, "gaussian")
    n_groups = k // 32
    x = gaussian(n_groups + 8 - n_groups % 8, k)
    for group in range(n_groups):
        x[group, 32 * group + 7 * group % 32] = 64 + group
        x[group, 32 * ((group + 5) % n_groups) + 3] = -90
    x[n_groups:] = 0
    x[n_groups + 1 :: 3, -1] = [np.nan, np.inf][k % 64 // 32]
    together = multiply(packed, fmt, x, isa, "decode")
    alone = np.concatenate([multiply(packed, fmt, row[None], isa, "decode") for row in x])
    finite = np.isfinite(x).all(1)
    assert together[finite].tobytes() == alone[finite].tobytes()
    assert not np.isfinite(together[~finite]).any() and not np.isfinite(alone[~finite]).any()
