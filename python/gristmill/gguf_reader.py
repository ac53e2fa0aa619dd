"""A cursor over the header bytes of a GGUF file: bounded reads, checked lengths, errors that name the place.

Bytes are read with read(2) in growing steps, not mapped: a file that is cut meanwhile gives an error, not
SIGBUS, and of a file of many gigabytes only the header is ever held.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

from gristmill import _core
from gristmill.errors import GGUFError
from gristmill.gguf_types import ARRAY, BOOL, STRING, VALUE_TYPES
from gristmill.messages import file_error, quoted

MAX_HEADER_BYTES = 1 << 28  # the largest vocabularies in use take some 20 MB
MAX_ARRAY_DEPTH = 8
_FIRST_READ = 1 << 16
_MAX_STEP = 1 << 22

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")  # element type, count
# The fewest bytes an element of each type takes, so that a count can be held against the bytes left.
_MIN_SIZE = tuple(t.size or (8 if t.name == "string" else _ARRAY_HEAD.size) for t in VALUE_TYPES)


def open_regular(path: Path) -> tuple[int, int]:
    """Open a regular file for reading and return (descriptor, size in bytes).

    Raises GGUFError for anything else. Looking before opening keeps a FIFO from blocking and a device from
    being touched; looking again afterwards closes the gap between the two.
    """
    try:
        _refuse_irregular(path, path.stat().st_mode)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        fd = os.open(path, flags)
    except FileNotFoundError:
        raise file_error(path, "no such file") from None
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise file_error(path, f"cannot be opened: {reason}") from None
    try:
        status = os.fstat(fd)
        _refuse_irregular(path, status.st_mode)
        if status.st_size == 0:
            raise file_error(path, "empty file")
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


def _refuse_irregular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise file_error(path, "is a directory, expected a GGUF file")
    if not stat.S_ISREG(mode):
        kind = "FIFO" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise file_error(path, f"is a {kind}, expected a regular file")


class HeaderReader:
    """Reads a header front to back. ``pos`` is the next byte.

    ``what`` ("key", "tensor") and ``subject`` (its name, once read) say in messages what is being read.
    """

    __slots__ = ("_fd", "data", "file_size", "path", "pos", "subject", "what")

    def __init__(self, path: Path, fd: int, file_size: int) -> None:
        self.path = path
        self.file_size = file_size
        self.data = bytearray()
        self.pos = 0
        self.what = "the header"
        self.subject = ""
        self._fd = fd

    @property
    def item(self) -> str:
        """What is being read. Put together on demand: a header has 10^5 items and at most one error."""
        return f"{self.what} {quoted(self.subject)}" if self.subject else self.what

    def error(self, what: str) -> GGUFError:
        return file_error(self.path, what)

    def require(self, end: int) -> None:
        """Make bytes [0, end) of the file available in ``data``. Raises GGUFError if it lacks them."""
        data = self.data
        if end <= len(data):
            return
        if end > self.file_size:
            raise self.error(
                f"truncated or corrupt: {self.item} would end at byte {end} or later, "
                f"but the file has {self.file_size} bytes"
            )
        if end > MAX_HEADER_BYTES:
            raise self.error(
                f"{self.item} would end at byte {end}: a header is limited to {MAX_HEADER_BYTES} bytes"
            )
        while len(data) < end:
            step = min(max(len(data), _FIRST_READ), _MAX_STEP)
            try:
                chunk = os.read(self._fd, min(step, MAX_HEADER_BYTES - len(data)))
            except OSError as e:
                raise self.error(f"cannot be read: {e.strerror}") from None
            if not chunk:
                raise self.error(f"truncated: the file ended at byte {len(data)} while its header was read")
            data += chunk

    def available(self) -> int:
        """The bytes of the file after ``pos``."""
        return self.file_size - self.pos

    def u32(self) -> int:
        pos = self.pos
        if pos + 4 > len(self.data):
            self.require(pos + 4)
        self.pos = pos + 4
        value: int = _U32.unpack_from(self.data, pos)[0]
        return value

    def u64(self) -> int:
        pos = self.pos
        if pos + 8 > len(self.data):
            self.require(pos + 8)
        self.pos = pos + 8
        value: int = _U64.unpack_from(self.data, pos)[0]
        return value

    def name(self, limit: int) -> str:
        """A key or tensor name: UTF-8 of 1 to ``limit`` bytes."""
        size = self.u64()
        if size > limit:
            raise self.error(f"{self.item}: its name is {size} bytes long, at most {limit} are allowed")
        if size == 0:
            raise self.error(f"{self.item}: its name is empty")
        start, end = self.pos, self.pos + size
        if end > len(self.data):
            self.require(end)
        self.pos = end
        try:
            return self.data[start:end].decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"{self.item}: its name is not valid UTF-8") from None

    def skip_value(self, type_id: int, depth: int = 0) -> None:
        """Step over a value, checking that every part of it lies in the file and that its types are known."""
        if type_id == STRING:
            self._skip_strings(1)
        elif type_id == ARRAY:
            if depth == MAX_ARRAY_DEPTH:
                raise self.error(f"{self.item}: arrays nested more than {MAX_ARRAY_DEPTH} deep")
            self._skip_array(depth)
        elif type_id < len(VALUE_TYPES):
            self._skip_bytes(VALUE_TYPES[type_id].size, type_id)
        else:
            raise self.error(f"{self.item}: unknown value type {type_id}")

    def _skip_array(self, depth: int) -> None:
        element, count = self.u32(), self.u64()
        if element >= len(VALUE_TYPES):
            raise self.error(f"{self.item}: unknown array element type {element}")
        if count > self.available() // _MIN_SIZE[element]:
            raise self.error(
                f"truncated or corrupt: {self.item} says {count} elements of type "
                f"{VALUE_TYPES[element].name}, but only {self.available()} bytes are left of {self.file_size}"
            )
        if element == STRING:
            self._skip_strings(count)
        elif element == ARRAY:
            for _ in range(count):
                self.skip_value(ARRAY, depth + 1)
        else:
            self._skip_bytes(count * VALUE_TYPES[element].size, element)

    def _skip_bytes(self, size: int, element: int) -> None:
        start, end = self.pos, self.pos + size
        if end > len(self.data):
            self.require(end)
        if element == BOOL and self.data[start:end].strip(b"\0\1"):
            raise self.error(f"{self.item}: a bool is neither 0 nor 1")
        self.pos = end

    def _skip_strings(self, count: int) -> None:
        pos = self.pos
        while count:
            pos, count = _core.skip_strings(self.data, pos, count)
            if count and pos + 8 <= len(self.data):  # a length that no file can have
                pos += 8 + _U64.unpack_from(self.data, pos)[0]
                count -= 1
            self.require(pos + 8 * count)
        self.pos = pos


def decode_value(data: bytes, pos: int, type_id: int) -> tuple[object, int]:
    """Decode the value at ``pos`` of a header that skip_value() has passed. Returns (value, end position).

    Strings are decoded with ``surrogateescape``: tokens of byte-level vocabularies need not be UTF-8, and
    ``text.encode("utf-8", "surrogateescape")`` gives their bytes back.
    """
    if type_id == STRING:
        start = pos + 8
        end = start + _U64.unpack_from(data, pos)[0]
        return data[start:end].decode("utf-8", "surrogateescape"), end
    if type_id != ARRAY:
        kind = VALUE_TYPES[type_id]
        return struct.unpack_from("<" + kind.code, data, pos)[0], pos + kind.size
    element, count = _ARRAY_HEAD.unpack_from(data, pos)
    pos += _ARRAY_HEAD.size
    if element == STRING:
        return _core.decode_strings(data, pos, count)
    if element == ARRAY:
        rows: list[object] = []
        for _ in range(count):
            row, pos = decode_value(data, pos, ARRAY)
            rows.append(row)
        return rows, pos
    kind = VALUE_TYPES[element]
    return list(struct.unpack_from(f"<{count}{kind.code}", data, pos)), pos + count * kind.size


def value_end(data: bytes, pos: int, type_id: int) -> int:
    """The position behind the value at ``pos`` of a header that skip_value() has passed."""
    if type_id == STRING:
        return pos + 8 + int(_U64.unpack_from(data, pos)[0])
    if type_id != ARRAY:
        return pos + VALUE_TYPES[type_id].size
    element, count = array_type(data, pos)
    pos += _ARRAY_HEAD.size
    if VALUE_TYPES[element].size:
        return pos + count * VALUE_TYPES[element].size
    if element == STRING:
        return _core.skip_strings(data, pos, count)[0]
    for _ in range(count):
        pos = value_end(data, pos, element)
    return pos


def array_type(data: bytes, pos: int) -> tuple[int, int]:
    """(element type, count) of the array at ``pos``."""
    element, count = _ARRAY_HEAD.unpack_from(data, pos)
    return element, count
