"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


def check_writable(path: Path) -> None:
    """Raises OSError where ``path`` cannot be written, before hours are spent on what goes there."""
    path.parent.stat()
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden name beside ``path`` to write to, which takes ``path``'s place when the block ends well.

    An OSError of the block names ``path``; nothing is left of a block that did not end well.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        partial.unlink(missing_ok=True)
