"""The header of one GGUF file: version, metadata positions, tensor table.

"GGUF" | version u32 | n_tensors u64 | n_kv u64
n_kv x      (key, type u32, value)
n_tensors x (name, n_dims u32, ne u64[n_dims], type u32, offset u64 from the start of the data)
padding to a multiple of general.alignment | data
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from gristmill.errors import GGUFError
from gristmill.gguf_magic import check_magic
from gristmill.gguf_reader import HeaderReader
from gristmill.gguf_types import REMOVED_TENSOR_TYPES, TENSOR_TYPES, U32, VALUE_TYPES
from gristmill.messages import quoted

ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 30
MAX_DIMS = 4
MAX_KEY_BYTES = (1 << 16) - 1
MAX_TENSOR_NAME_BYTES = 64
SIZE_LIMIT = (
    1 << 62
)  # on elements, bytes and offsets: the sum of two such still fits the int64 they become in C++

_MIN_KEY_VALUE_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8
# name, shape, type, type_id, offset from the start of the data (which is known after the last entry), n_bytes
_Entry: TypeAlias = tuple[str, tuple[int, ...], str, int, int, int]
_TENSOR_TAILS = tuple(struct.Struct(f"<{n_dims}QIQ") for n_dims in range(MAX_DIMS + 1))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. ``shape`` is in numpy's order, rows first: GGUF's ``ne`` reversed.

    ``offset`` is absolute, in bytes, in the file ``paths[file_index]`` of the GGUFFile.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    type_id: int
    offset: int
    n_bytes: int
    file_index: int

    @property
    def n_elements(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The first byte behind the tensor in its file."""
        return self.offset + self.n_bytes


class Header(NamedTuple):
    """``data`` is the header's bytes; ``entries`` gives each key the position of its value's type in them."""

    version: int
    alignment: int
    data: bytes
    entries: dict[str, int]
    tensors: dict[str, TensorInfo]


def parse_header(path: Path, fd: int, file_size: int, file_index: int = 0) -> Header:
    """Parse the header of the open file ``fd``. Raises GGUFError. Tensors may still lie outside the file."""
    reader = HeaderReader(path, fd, file_size)
    version = check_magic(reader)
    n_tensors, n_kv = reader.u64(), reader.u64()
    for count, size, what in (
        (n_kv, _MIN_KEY_VALUE_BYTES, "keys"),
        (n_tensors, _MIN_TENSOR_BYTES, "tensors"),
    ):
        if count > reader.available() // size:
            raise reader.error(
                f"truncated or corrupt: the header says {count} {what}, but the file has {file_size} bytes"
            )
    entries = _read_entries(reader, n_kv)
    alignment = _alignment(reader, entries)
    tensors = _read_tensors(reader, n_tensors, alignment, file_index)
    return Header(version, alignment, bytes(memoryview(reader.data)[: reader.pos]), entries, tensors)


def _read_entries(reader: HeaderReader, n_kv: int) -> dict[str, int]:
    entries: dict[str, int] = {}
    for i in range(n_kv):
        reader.what, reader.subject = f"key {i + 1} of {n_kv}", ""
        key = reader.name(MAX_KEY_BYTES)
        if key in entries:
            raise reader.error(f"key {quoted(key)} appears twice")
        reader.what, reader.subject = "key", key
        entries[key] = reader.pos
        reader.skip_value(reader.u32())
    return entries


def _alignment(reader: HeaderReader, entries: dict[str, int]) -> int:
    """general.alignment: by the specification a uint32 and a multiple of 8."""
    if ALIGNMENT_KEY not in entries:
        return DEFAULT_ALIGNMENT
    pos = entries[ALIGNMENT_KEY]
    type_id = int.from_bytes(reader.data[pos : pos + 4], "little")
    if type_id != U32:
        raise reader.error(f"key '{ALIGNMENT_KEY}': expected uint32, got {VALUE_TYPES[type_id].name}")
    alignment = int.from_bytes(reader.data[pos + 4 : pos + 8], "little")
    if alignment == 0 or alignment % 8 or alignment > MAX_ALIGNMENT:
        raise reader.error(
            f"{ALIGNMENT_KEY} is {alignment}, expected a multiple of 8, at most {MAX_ALIGNMENT}"
        )
    return alignment


def _read_tensors(
    reader: HeaderReader, n_tensors: int, alignment: int, file_index: int
) -> dict[str, TensorInfo]:
    found: list[_Entry] = []
    for i in range(n_tensors):
        reader.what, reader.subject = f"tensor {i + 1} of {n_tensors}", ""
        name = reader.name(MAX_TENSOR_NAME_BYTES)
        reader.what, reader.subject = "tensor", name
        found.append(_read_tensor(reader, name, alignment))
    data_start = -(-reader.pos // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, type_id, offset, n_bytes in found:
        if name in tensors:
            raise reader.error(f"tensor {quoted(name)} appears twice")
        tensors[name] = TensorInfo(name, shape, kind, type_id, data_start + offset, n_bytes, file_index)
    _check_overlap(reader, tensors)
    return tensors


def _read_tensor(reader: HeaderReader, name: str, alignment: int) -> _Entry:
    n_dims = reader.u32()
    if not 1 <= n_dims <= MAX_DIMS:
        raise reader.error(f"{reader.item} has {n_dims} dimensions, expected 1 to {MAX_DIMS}")
    tail = _TENSOR_TAILS[n_dims]
    end = reader.pos + tail.size
    reader.require(end)
    *ne, type_id, offset = tail.unpack_from(reader.data, reader.pos)
    reader.pos = end
    kind = TENSOR_TYPES.get(type_id)
    if kind is None:
        raise _unknown_type(reader, type_id)
    shape = tuple(ne[::-1])
    n_elements = math.prod(ne)
    if n_elements == 0:
        raise reader.error(f"{reader.item} has no elements: shape {shape}")
    n_bytes = n_elements // kind.block_size * kind.type_size
    if max(n_elements, n_bytes, offset) >= SIZE_LIMIT:
        raise reader.error(f"{reader.item} is too large: shape {shape}, {n_bytes} bytes at offset {offset}")
    if ne[0] % kind.block_size:
        raise reader.error(
            f"{reader.item} has rows of {ne[0]} elements, not a multiple of {kind.name}'s block size "
            f"{kind.block_size}"
        )
    if offset % alignment:
        raise reader.error(f"{reader.item} is misaligned: offset {offset} is not a multiple of {alignment}")
    return name, shape, kind.name, type_id, offset, n_bytes


def _unknown_type(reader: HeaderReader, type_id: int) -> GGUFError:
    if type_id in REMOVED_TENSOR_TYPES:
        name = REMOVED_TENSOR_TYPES[type_id]
        return reader.error(
            f"{reader.item} has type {type_id} ({name}), which GGUF no longer has; convert again"
        )
    return reader.error(f"{reader.item} has unknown type {type_id}")


def _check_overlap(reader: HeaderReader, tensors: dict[str, TensorInfo]) -> None:
    before: TensorInfo | None = None
    for t in sorted(tensors.values(), key=lambda t: t.offset):
        if before is not None and t.offset < before.end:
            raise reader.error(
                f"tensors {quoted(before.name)} and {quoted(t.name)} overlap at byte {t.offset}"
            )
        before = t
