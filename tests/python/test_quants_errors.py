"""What quants refuses, and that each message names the fault and what would be right."""

from __future__ import annotations

import re

import numpy as np
import pytest
from gristmill import quants
from gristmill.errors import ArgumentError

FORMATS = quants.formats()
AFFINE = [fmt for fmt in FORMATS if fmt.kind == "affine"]

each_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
each_affine = pytest.mark.parametrize("fmt", AFFINE, ids=lambda fmt: fmt.name)


def refused(*parts: str) -> pytest.RaisesExc[ArgumentError]:
    """ArgumentError whose one line holds these parts in this order."""
    return pytest.raises(
        ArgumentError, match="^" + ".*".join(map(re.escape, parts)).join(["[^\n]*", "[^\n]*$"])
    )


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("q4_k", "Q4_K"), ("Q4K", "Q4_K"), ("Q8", "Q8_0"), ("fp16", "F16"), ("IQ4XS", "IQ4_XS")],
)
def test_unknown_type_names_the_nearest_and_all(wrong: str, nearest: str) -> None:
    everything = ", ".join(fmt.name for fmt in FORMATS)
    with refused(repr(wrong), f"did you mean {nearest!r}", everything):
        quants.quantize(np.zeros((1, 256)), wrong)
    with refused(repr(wrong), f"did you mean {nearest!r}", everything):
        quants.dequantize(b"", wrong, (0, 256))


@pytest.mark.parametrize("wrong", [None, 12, "", b"Q4_K"])
def test_type_that_is_no_name(wrong: object) -> None:
    with refused("unknown type", "Known types"):
        quants.quantize(np.zeros((1, 256)), wrong)  # type: ignore[arg-type]


@each_affine
def test_row_that_does_not_divide_into_blocks(fmt: quants.Format) -> None:
    n = fmt.block_size + 1
    with refused(fmt.name, f"multiple of {fmt.block_size}", f"got {n}"):
        quants.quantize(np.zeros((3, n)), fmt.name)
    with refused(fmt.name, f"multiple of {fmt.block_size}", f"got {n}"):
        quants.dequantize(bytes(fmt.type_size), fmt.name, (1, n))


@each_format
def test_wrong_number_of_bytes(fmt: quants.Format) -> None:
    need = fmt.row_bytes(256) * 3
    for got in (0, need - 1, need + 1):
        with refused(fmt.name, "(3, 256)", f"{need} bytes", f"got {got}"):
            quants.dequantize(bytes(got), fmt.name, (3, 256))


@each_format
def test_nan_is_named_by_row_and_column(fmt: quants.Format) -> None:
    x = np.ones((5000, 256), np.float32)
    x[4321, 123] = np.nan
    with refused("nan", "row 4321", "column 123", fmt.name):
        quants.quantize(x, fmt.name)


@each_affine
@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
def test_infinity_has_no_code_in_a_quantized_format(fmt: quants.Format, value: float) -> None:
    x = np.ones((2, 256))
    x[1, 7] = value
    with refused(str(value), "row 1", "column 7", fmt.name):
        quants.quantize(x, fmt.name)


def test_infinity_passes_through_float_formats() -> None:
    x = np.array([[np.inf, -np.inf, 1.0, -0.0]], np.float32)
    for fmt in FORMATS:
        if fmt.kind == "float":
            assert np.array_equal(quants.dequantize(quants.quantize(x, fmt.name), fmt.name, x.shape), x)


@pytest.mark.parametrize("array", [3.0, "text", [[1.0], [1.0, 2.0]], np.zeros((1, 256), complex), None])
def test_array_that_is_not_real_numbers(array: object) -> None:
    with refused("array must"):
        quants.quantize(array, "Q4_K")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (-1, 256), "wide", None, (1.5,)])
def test_shape_that_is_no_shape(shape: object) -> None:
    with refused("shape must be"):
        quants.dequantize(b"", "Q4_K", shape)  # type: ignore[arg-type]


def test_packed_of_another_type() -> None:
    with refused("packed", "float32"):
        quants.dequantize(np.zeros(144, np.float32), "Q4_K", 256)
    with refused("packed", "list"):
        quants.dequantize([0] * 144, "Q4_K", 256)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(255,), (256, 1), (3, 256), (1, 2, 256)])
def test_importance_of_another_shape(shape: tuple[int, ...]) -> None:
    with refused("importance", "(256,)", "(2, 256)", str(shape)):
        quants.quantize(np.zeros((2, 256)), "Q4_K", np.ones(shape))


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_importance_out_of_range(value: float) -> None:
    importance = np.ones((2, 256))
    importance[1, 9] = value
    with refused("importance", str(value), "row 1", "column 9"):
        quants.quantize(np.zeros((2, 256)), "Q4_K", importance)
    with refused("importance", str(value), "column 9"):
        quants.quantize(np.zeros((2, 256)), "Q4_K", importance[1])
