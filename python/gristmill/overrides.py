"""Overriding metadata: what `--override-kv KEY=TYPE:VALUE` means, and which type a key must have.

The syntax is llama.cpp's, with its rules for several overrides in one argument: separated by commas, and a
field in double quotes may hold commas. `\\,` is a comma too.
"""

from __future__ import annotations

import math
import re
from typing import TypeAlias

from gristmill.errors import ArgumentError
from gristmill.gguf_types import ValueType
from gristmill.messages import printable, quoted

Scalar: TypeAlias = bool | int | float | str

TYPE_NAMES: dict[type, str] = {bool: "bool", int: "int", float: "float", str: "str"}

# Types of keys that a file may lack and a user may still set. Keys of an architecture lack its prefix here.
_MODEL_KEYS: dict[str, type] = {
    "vocab_size": int,
    "context_length": int,
    "embedding_length": int,
    "block_count": int,
    "feed_forward_length": int,
    "attention.head_count": int,
    "attention.head_count_kv": int,
    "attention.key_length": int,
    "attention.value_length": int,
    "attention.layer_norm_rms_epsilon": float,
    "rope.dimension_count": int,
    "rope.freq_base": float,
    "rope.scale_linear": float,
    "rope.scaling.type": str,
    "rope.scaling.factor": float,
    "rope.scaling.attn_factor": float,
    "rope.scaling.original_context_length": int,
    "rope.scaling.finetuned": bool,
    "rope.scaling.yarn_log_multiplier": float,
    "rope.scaling.yarn_ext_factor": float,
    "rope.scaling.yarn_attn_factor": float,
    "rope.scaling.yarn_beta_fast": float,
    "rope.scaling.yarn_beta_slow": float,
}
_GLOBAL_KEYS: dict[str, type] = {
    "general.architecture": str,
    "general.name": str,
    "tokenizer.ggml.model": str,
    "tokenizer.ggml.pre": str,
    "tokenizer.ggml.bos_token_id": int,
    "tokenizer.ggml.eos_token_id": int,
    "tokenizer.ggml.eot_token_id": int,
    "tokenizer.ggml.eom_token_id": int,
    "tokenizer.ggml.unknown_token_id": int,
    "tokenizer.ggml.padding_token_id": int,
    "tokenizer.ggml.add_bos_token": bool,
    "tokenizer.ggml.add_eos_token": bool,
    "tokenizer.ggml.add_space_prefix": bool,
    "tokenizer.chat_template": str,
}

_INT64 = (-(1 << 63), (1 << 63) - 1)
_INT_RANGES: dict[str, tuple[int, int]] = {
    "uint8": (0, 0xFF),
    "int8": (-0x80, 0x7F),
    "uint16": (0, 0xFFFF),
    "int16": (-0x8000, 0x7FFF),
    "uint32": (0, 0xFFFF_FFFF),
    "int32": (-0x8000_0000, 0x7FFF_FFFF),
    "uint64": (0, (1 << 64) - 1),
    "int64": _INT64,
}
_INT_TEXT = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_FLOAT_TEXT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", re.ASCII)


class TypedInt(int):
    """An int whose type the user wrote (``int:4``), which therefore does not pass for a float."""


def parse_override(text: str) -> tuple[str, Scalar]:
    """Parse one ``KEY=TYPE:VALUE`` (TYPE: int, float, bool, str) into (key, value).

    A value with ``int:`` comes back as a :class:`TypedInt`. Raises ArgumentError.
    """
    key, equals, typed = text.partition("=")
    kind, colon, value = typed.partition(":")
    if not (key and equals and colon):
        raise ArgumentError(
            f"override {quoted(text)}: expected KEY=TYPE:VALUE, TYPE one of int, float, bool, str"
        )
    if kind == "str":
        return key, value
    if kind == "int":
        number = int(value) if _INT_TEXT.fullmatch(value) else None
        if number is None or not _INT64[0] <= number <= _INT64[1]:
            raise ArgumentError(
                f"override {quoted(key)}: expected an integer of 64 bits, got {quoted(value)}"
            )
        return key, TypedInt(number)
    if kind == "float":
        if not _FLOAT_TEXT.fullmatch(value) or not math.isfinite(float(value)):
            raise ArgumentError(f"override {quoted(key)}: expected a finite number, got {quoted(value)}")
        return key, float(value)
    if kind == "bool":
        if value not in ("true", "false"):
            raise ArgumentError(f"override {quoted(key)}: expected true or false, got {quoted(value)}")
        return key, value == "true"
    raise ArgumentError(
        f"override {quoted(key)}: unknown type {quoted(kind)}, expected int, float, bool or str"
    )


def parse_overrides(*texts: str) -> dict[str, Scalar]:
    """Parse any number of arguments, each of one or more overrides separated by commas. Raises ArgumentError.

    A key that is given twice with different values is refused, since one of the two would have no effect.
    """
    overrides: dict[str, Scalar] = {}
    for text in texts:
        for field in _split(text):
            key, value = parse_override(field)
            before = overrides.setdefault(key, value)
            if type(before) is not type(value) or before != value:
                raise ArgumentError(f"override {quoted(key)}: given twice, as {before!r} and as {value!r}")
    return overrides


def _split(text: str) -> list[str]:
    """The comma-separated fields of ``text``. A field that begins with a double quote runs to the closing one
    (``""`` inside stands for a quote); ``\\,`` is a comma anywhere."""
    fields, field, in_quotes, i = [], "", False, 0
    while i < len(text):
        c = text[i]
        if text.startswith("\\,", i):
            field += ","
            i += 1
        elif c == '"' and in_quotes:
            if text.startswith('""', i):
                field += '"'
                i += 1
            else:
                in_quotes = False
        elif c == '"' and not field:
            in_quotes = True
        elif c == "," and not in_quotes:
            fields.append(field)
            field = ""
        else:
            field += c
        i += 1
    if in_quotes:
        raise ArgumentError(f"override {quoted(text)}: the double quote is not closed")
    fields.append(field)
    return fields


def known_type(key: str) -> type | None:
    """The type that ``key`` must have although the file lacks it; None where gristmill does not know."""
    return _GLOBAL_KEYS.get(key) or _MODEL_KEYS.get(key.partition(".")[2])


def checked_override(key: str, value: object, in_file: ValueType | None) -> Scalar:
    """``value`` in the type ``key`` has in the file (``in_file``) or should have. Raises ArgumentError."""
    if in_file is not None and in_file.python is list:
        raise ArgumentError(
            f"override {quoted(key)}: the file holds an array here, and arrays cannot be overridden"
        )
    if not isinstance(value, (bool, int, float, str)):
        raise ArgumentError(
            f"override {quoted(key)}: expected int, float, bool or str, got {type(value).__name__}"
        )
    got = next(t for t in TYPE_NAMES if isinstance(value, t))  # bool stands before int
    want = in_file.python if in_file is not None else known_type(key) or got
    if want is float and got is int and not isinstance(value, TypedInt) and abs(int(value)) < 1 << 63:
        value, got = float(value), float
    if got is not want:
        raise ArgumentError(
            f"override {quoted(key)}: expected {TYPE_NAMES[want]}, got {TYPE_NAMES[got]} "
            f"{printable(repr(value), 80)}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ArgumentError(f"override {quoted(key)}: expected a finite number, got {value!r}")
    if got is int:
        low, high = _INT_RANGES[in_file.name] if in_file is not None else _INT64
        if not low <= int(value) <= high:
            raise ArgumentError(f"override {quoted(key)}: {int(value)} is outside {low}..{high}")
        return int(value)
    return value
