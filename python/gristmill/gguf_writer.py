"""Writing GGUF files whose tensors are filled in later, in any order and from several threads.

Sizes are known before a byte of a tensor is, so a file is laid out first: header, then room for every tensor.
It is written under a hidden name beside its target and takes the target's name only when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from gristmill.errors import ArgumentError
from gristmill.gguf_types import ARRAY, STRING, TENSOR_TYPES, VALUE_TYPES
from gristmill.metadata import Metadata

_TYPE_IDS = {kind.name: type_id for type_id, kind in TENSOR_TYPES.items()}
_VALUE_IDS = {kind.name: i for i, kind in enumerate(VALUE_TYPES)}
_VERSION = 3


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be: ``shape`` rows first, ``type`` as GGUF spells it."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def n_weights(self) -> int:
        """Numbers in it."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def n_bytes(self) -> int:
        """Bytes it takes in the file, without padding."""
        kind = TENSOR_TYPES[_TYPE_IDS[self.type]]
        return self.n_weights // kind.block_size * kind.type_size


def encode_value(type: str, value: object) -> bytes:
    """A metadata value as a file holds it: the type's number, then the value.

    ``type`` is a name of GGUF's value types; for an array "array of " and the elements' type.
    """
    element = type.removeprefix("array of ")
    if element != type:
        assert isinstance(value, Sequence)
        items = b"".join(_encode(element, item) for item in value)
        return struct.pack("<IIQ", ARRAY, _VALUE_IDS[element], len(value)) + items
    return struct.pack("<I", _VALUE_IDS[type]) + _encode(type, value)


def _encode(type: str, value: object) -> bytes:
    kind = VALUE_TYPES[_VALUE_IDS[type]]
    if _VALUE_IDS[type] == STRING:
        data = str(value).encode("utf-8", "surrogateescape")
        return struct.pack("<Q", len(data)) + data
    return struct.pack(f"<{kind.code}", value)


def copy_metadata(
    metadata: Metadata, without: Iterable[str] = (), more: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """Keys with their values as bytes, as the source holds them; ``more`` is last, in place of equal keys."""
    left_out = {*without, *(more or {})}
    values = {key: metadata.raw_value(key) for key in metadata.file_keys if key not in left_out}
    return {**values, **(more or {})}


class GGUFWriter:
    """One file in the making: ``write_at`` fills it, ``commit`` gives it its name, leaving ``with`` drops it.

    ``offsets`` says where each tensor begins. Raises OSError with the target's name, a full disk included:
    where the file system can, all room is taken at once.
    """

    def __init__(
        self, target: Path, metadata: Mapping[str, bytes], tensors: Sequence[NewTensor], alignment: int = 32
    ) -> None:
        self.target = target
        self.offsets: dict[str, int] = {}
        header, data_bytes = self._layout(metadata, tensors, alignment)
        self.n_bytes = len(header) + data_bytes
        self.committed = False
        self._hidden: Path | None = None
        self._fd = -1
        try:
            self._create()
            self._reserve()
            self.write_at(0, header)
        except BaseException:
            self.discard()
            raise

    def _layout(
        self, metadata: Mapping[str, bytes], tensors: Sequence[NewTensor], alignment: int
    ) -> tuple[bytes, int]:
        parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
        for key, value in metadata.items():
            name = key.encode()
            parts += [struct.pack("<Q", len(name)), name, value]
        position = 0
        starts: list[int] = []
        for tensor in tensors:
            name = tensor.name.encode()
            ne = tensor.shape[::-1]
            parts.append(struct.pack("<Q", len(name)) + name)
            parts.append(struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, _TYPE_IDS[tensor.type], position))
            starts.append(position)
            position += _aligned(tensor.n_bytes, alignment)
        header = b"".join(parts)
        header += bytes(_aligned(len(header), alignment) - len(header))
        self.offsets = {t.name: len(header) + at for t, at in zip(tensors, starts, strict=True)}
        return header, position

    def _create(self) -> None:
        if self.target.is_dir():
            raise ArgumentError(f"{self.target}: is a directory, expected the name of a file to write")
        hidden = self.target.with_name(f".{self.target.name[:100]}.{secrets.token_hex(4)}.part")
        self._hidden = hidden
        with self._named():
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self._fd = os.open(hidden, flags, 0o666)

    def _reserve(self) -> None:
        with self._named():
            os.ftruncate(self._fd, self.n_bytes)
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(self._fd, 0, self.n_bytes)
                except OSError as error:  # not every file system can
                    if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                        raise

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Writes at a position of the file; may be called from several threads."""
        view = memoryview(data).cast("B")
        with self._named():
            while view:
                done = os.pwrite(self._fd, view, offset)
                view, offset = view[done:], offset + done

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), str(self.target)) from None

    def commit(self) -> None:
        """The file is whole and takes the target's name."""
        assert self._hidden is not None
        fd, self._fd = self._fd, -1
        with self._named():
            os.close(fd)  # where a network's file system tells that its disk was full
            self._hidden.replace(self.target)
        self.committed = True
        self._hidden = None

    def discard(self) -> None:
        """Removes what is not committed."""
        hidden, self._hidden = self._hidden, None
        fd, self._fd = self._fd, -1
        if hidden is not None:
            hidden.unlink(missing_ok=True)
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def _aligned(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment
