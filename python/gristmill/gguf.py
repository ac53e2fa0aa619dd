"""GGUF files: opening one file or all parts of a split one, and checking tensors against the files' sizes."""

from __future__ import annotations

import os
import re
import weakref
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from gristmill.errors import GGUFError
from gristmill.gguf_header import TensorInfo, parse_header
from gristmill.gguf_reader import open_regular
from gristmill.messages import file_error, printable, quoted
from gristmill.metadata import Metadata

__all__ = ["GGUFFile", "TensorInfo"]

_SPLIT_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.ASCII | re.DOTALL)


class _Part:
    """One open file and its header. ``closing`` takes over its descriptor."""

    def __init__(self, path: Path, closing: ExitStack, file_index: int = 0) -> None:
        self.path = path
        self.fd, self.size = open_regular(path)
        closing.callback(os.close, self.fd)
        self.header = parse_header(path, self.fd, self.size, file_index)
        self.metadata = Metadata(path, self.header.data, self.header.entries)
        self.split_no = self.metadata.get_int("split.no", 0)
        self.split_count = self.metadata.get_int("split.count", 0)


class GGUFFile:
    """An open GGUF file, or all parts of a split one; from :meth:`open`, closed by :meth:`close` or ``with``.

    The descriptors stay open, so that what is mapped later is the very file whose header was checked.
    ``metadata`` is the first part's, where split files keep it; ``tensors`` has those of all parts, in file
    order.
    """

    def __init__(self, parts: list[_Part], closing: ExitStack) -> None:
        first = parts[0]
        self.path: Path = first.path
        self.paths: list[Path] = [part.path for part in parts]
        self.file_sizes: list[int] = [part.size for part in parts]
        self.version: int = first.header.version
        self.alignment: int = first.header.alignment
        self.metadata: Metadata = Metadata(first.path, first.header.data, first.header.entries)
        self.tensors: dict[str, TensorInfo] = _merge_tensors(parts)
        self._fds = [part.fd for part in parts]
        self._closer = weakref.finalize(self, closing.pop_all().close)

    @classmethod
    def open(cls, path: str | os.PathLike[str], check_extents: bool = True) -> GGUFFile:
        """Open ``path``; for any part of a split file all of its parts, which must lie beside it.

        With ``check_extents=False`` a file opens as well whose header is whole but whose tensors are cut off;
        call :meth:`check_extents` before touching one. Raises GGUFError, its message beginning with the path.
        """
        with ExitStack() as closing:
            file = cls(_open_parts(Path(path), closing), closing)
        if check_extents:
            try:
                file.check_extents()
            except GGUFError:
                file.close()
                raise
        return file

    def check_extents(self) -> None:
        """Check every tensor against the present size of its open file. Raises GGUFError."""
        sizes = self.file_sizes = [os.fstat(self.fileno(i)).st_size for i in range(len(self.paths))]
        outside = [t for t in self.tensors.values() if t.end > sizes[t.file_index]]
        if outside:
            first = min(outside, key=lambda t: (t.file_index, t.offset))
            size = sizes[first.file_index]
            missing = max(t.end for t in outside if t.file_index == first.file_index) - size
            raise file_error(
                self.paths[first.file_index],
                f"truncated: tensor {quoted(first.name)} ends at byte {first.end} "
                f"but the file has {size} bytes, {missing} too few",
            )

    def fileno(self, file_index: int = 0) -> int:
        """The descriptor of ``paths[file_index]``, valid until :meth:`close`."""
        if not self._closer.alive:
            raise ValueError(f"{printable(str(self.path))}: the file is closed")
        return self._fds[file_index]

    def close(self) -> None:
        """Close the descriptors; ``metadata`` and ``tensors`` stay usable."""
        self._closer()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<GGUFFile {printable(str(self.path))}: {len(self.tensors)} tensors, {len(self.metadata)} keys>"
        )


def _open_parts(path: Path, closing: ExitStack) -> list[_Part]:
    """``path``, or all parts of the split file it belongs to, in order."""
    given = _Part(path, closing)
    count = given.split_count
    if count <= 1:
        return [given]
    number = given.split_no + 1
    name = _SPLIT_NAME.fullmatch(path.name)
    if name is None or (int(name[2]), int(name[3])) != (number, count):
        raise file_error(
            path,
            f"is part {number} of {count}, but its name does not end in -{number:05}-of-{count:05}.gguf, "
            "so the other parts cannot be found",
        )
    parts: list[_Part] = []
    for i in range(count):
        sibling = path.with_name(f"{name[1]}-{i + 1:05}-of-{count:05}.gguf")
        if not sibling.exists():
            raise file_error(
                path, f"is part {number} of {count}, but {printable(sibling.name)} is not beside it"
            )
        part = given if i == given.split_no == 0 else _Part(sibling, closing, i)
        if (part.split_no, part.split_count) != (i, count):
            raise file_error(
                sibling,
                f"split.no and split.count are {part.split_no} and {part.split_count}, "
                f"expected {i} and {count} as in its name",
            )
        parts.append(part)
    return parts


def _merge_tensors(parts: list[_Part]) -> dict[str, TensorInfo]:
    if len(parts) == 1:
        return parts[0].header.tensors
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        for name, tensor in part.header.tensors.items():
            if name in tensors:
                other = printable(parts[tensors[name].file_index].path.name)
                raise file_error(part.path, f"tensor {quoted(name)} is also in {other}")
            tensors[name] = tensor
    expected = parts[0].metadata.get_int("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise file_error(
            parts[0].path,
            f"split.tensors.count is {expected}, but the {len(parts)} parts hold {len(tensors)} tensors",
        )
    return tensors
