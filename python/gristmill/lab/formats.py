"""A model quantized into formats to compare, kept in the user's cache so that it is done once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from gristmill._version import __version__
from gristmill.download import exclusive
from gristmill.errors import ArgumentError
from gristmill.gguf import GGUFFile
from gristmill.pull import cache_directory
from gristmill.quantizing.mixes import find_mix

Progress = Callable[[str, int, int], None]
"""Called with the format, the bytes of the source that are done, and all of them."""


def check_formats(names: Sequence[str]) -> list[str]:
    """The names as they are spelled; ArgumentError for one that is unknown or there twice."""
    found = [find_mix(name) for name in names]
    for name in found:
        if found.count(name) > 1:
            raise ArgumentError(f"format {name} is given twice")
    return found


def quantized_path(source: Path, format: str, imatrix: Path | None = None, cache: Path | None = None) -> Path:
    """Where ``source`` in ``format`` is kept, whether it is there or not.

    The name stands for what the result depends on: the source's path, size and time of change (all parts' of
    a split one), the format, the imatrix, and this version of gristmill, whose quantizers may differ from
    another's.
    """
    key = hashlib.sha256(f"{__version__}\0{format}".encode())
    with GGUFFile.open(source) as file:
        for path in file.paths:
            status = path.stat()
            key.update(os.fsencode(path.resolve()) + f"\0{status.st_size}\0{status.st_mtime_ns}".encode())
    if imatrix is not None:
        key.update(hashlib.sha256(imatrix.read_bytes()).digest())
    folder = cache or cache_directory() / "lab"
    return folder / key.hexdigest()[:16] / f"{source.name.removesuffix('.gguf')}-{format}.gguf"


def quantized(
    source: Path,
    format: str,
    *,
    requantize: bool = False,
    imatrix: Path | None = None,
    n_threads: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The file of ``source`` in ``format``, quantized unless the cache has it.

    It gets its name when it is whole; several processes may ask for it at once. Errors are those of
    :func:`gristmill.quantize_file.quantize_file`.
    """
    path = quantized_path(source, format, imatrix, cache)
    if path.exists():
        return path
    from gristmill.quantize_file import quantize_file

    def tell(tensor: str, done: int, total: int) -> None:
        if progress is not None:
            progress(format, done, total)

    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.with_name("lock")):
        if not path.exists():
            quantize_file(
                source,
                path,
                format,
                requantize=requantize,
                imatrix=imatrix,
                n_threads=n_threads,
                progress=tell,
            )
    return path
