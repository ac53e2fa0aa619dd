"""The wording that error messages share: one line, names quoted and bounded, the file's path in front."""

from __future__ import annotations

from pathlib import Path

from gristmill.errors import GGUFError

MAX_NAME = 80


def printable(text: str, limit: int = 0) -> str:
    """``text`` on one line: what is not printable escaped, cut to ``limit`` characters if that is not 0."""
    if limit and len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(name: str) -> str:
    """A key or tensor name for a message."""
    return f"'{printable(name, MAX_NAME)}'"


def file_error(path: Path, what: str) -> GGUFError:
    """The error ``<path>: <what>``."""
    return GGUFError(f"{printable(str(path))}: {what}")
