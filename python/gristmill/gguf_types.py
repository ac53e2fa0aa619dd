"""GGUF's value types and ggml's tensor types: numbers, names and sizes.

The tables are kept here because importing the ``gguf`` package takes as long as opening a large file; the
tests hold them against it. Source: the GGUF specification (ggml/docs/gguf.md) and ggml.h.
"""

from __future__ import annotations

from typing import NamedTuple

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


class ValueType(NamedTuple):
    """A metadata value type. ``size`` is 0 where it depends on the value; ``code`` is struct's letter."""

    name: str
    size: int
    code: str
    python: type


VALUE_TYPES: tuple[ValueType, ...] = (
    ValueType("uint8", 1, "B", int),
    ValueType("int8", 1, "b", int),
    ValueType("uint16", 2, "H", int),
    ValueType("int16", 2, "h", int),
    ValueType("uint32", 4, "I", int),
    ValueType("int32", 4, "i", int),
    ValueType("float32", 4, "f", float),
    ValueType("bool", 1, "?", bool),
    ValueType("string", 0, "", str),
    ValueType("array", 0, "", list),
    ValueType("uint64", 8, "Q", int),
    ValueType("int64", 8, "q", int),
    ValueType("float64", 8, "d", float),
)


class TensorType(NamedTuple):
    """A tensor type: rows are sequences of blocks of ``block_size`` weights in ``type_size`` bytes."""

    name: str
    block_size: int
    type_size: int


TENSOR_TYPES: dict[int, TensorType] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 40),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}

# Numbers that ggml used once and GGUF no longer has; files with them exist, and the refusal says what they
# are.
REMOVED_TENSOR_TYPES: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
