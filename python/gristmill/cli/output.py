"""What the command line writes: the answer on standard output, all else as single lines on standard error."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from typing import Any, TextIO

from gristmill.errors import GristmillWarning

_MAX_LINE = 2000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def one_line(text: str) -> str:
    """``text`` as one printable line: a file's own strings may hold newlines or terminal commands."""
    text = " ".join(text.split())
    text = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
    return text if len(text) <= _MAX_LINE else text[:_MAX_LINE] + " ..."


def for_terminal(text: str) -> str:
    """``text`` with control characters made visible, so that a model cannot send commands to the terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


def tell(kind: str, text: str) -> None:
    """Writes ``gristmill: kind: text`` on standard error; a closed standard error is no error."""
    with contextlib.suppress(OSError, ValueError):
        print(f"gristmill: {kind}: {one_line(text)}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Writes one plain line on standard error."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def setup(*, debug: bool = False) -> None:
    """Prepares the two streams and shows warnings as ``gristmill: warning: ...``.

    Warnings of libraries are for developers and appear with ``debug`` only.
    """
    for stream in (sys.stdout, sys.stderr):
        # An answer in a script that the terminal's encoding lacks must not end the program.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    if not debug:
        warnings.simplefilter("ignore")
    warnings.simplefilter("always", GristmillWarning)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        where = (
            "" if issubclass(category, GristmillWarning) else f"{filename}:{lineno}: {category.__name__}: "
        )
        tell("warning", f"{where}{message}")

    warnings.showwarning = show


def use_color(choice: str, stream: TextIO) -> bool:
    """Whether to color ``stream``: ``choice`` is on, off, or auto (a terminal, unless NO_COLOR is set)."""
    if choice in {"on", "enabled", "true", "1"}:
        return True
    if choice in {"off", "disabled", "false", "0"}:
        return False
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class AnswerWriter:
    """Streams an answer: what the model says to standard output, what it thinks to standard error, dimmed.

    ``thinking`` None hides thoughts. ``color`` is :func:`use_color`'s choice. An answer's last line is ended
    on a terminal, and elsewhere if ``end_line`` says so; otherwise what is written is the answer to the byte.
    """

    def __init__(
        self, content: TextIO, thinking: TextIO | None, *, color: str = "auto", end_line: bool = False
    ) -> None:
        self._content = content
        self._thinking = thinking
        self._dim = thinking is not None and use_color(color, thinking)
        self._terminal = content.isatty()
        self._end_line = end_line or self._terminal
        self._thought = False  # thoughts came before the content
        self._open_thought = False  # the line of thoughts is not ended
        self._at_line_start = True

    def write(self, text: str, kind: str = "content") -> None:
        """Writes and flushes one piece; ``kind`` is "content" or "reasoning"."""
        if kind == "reasoning":
            self._think(text)
            return
        if self._thought and self._at_line_start:
            text = text.lstrip("\n")  # the blank lines that set off thinking
        if not text:
            return
        self._end_thoughts()
        self._thought = False
        self._content.write(for_terminal(text) if self._terminal else text)
        self._content.flush()
        self._at_line_start = text.endswith("\n")

    def _think(self, text: str) -> None:
        self._thought = True
        if self._thinking is None or not text:
            return
        if self._thinking.isatty():
            text = for_terminal(text)
        self._thinking.write(f"\x1b[2m{text}\x1b[0m" if self._dim else text)
        self._thinking.flush()
        self._open_thought = not text.endswith("\n")

    def _end_thoughts(self) -> None:
        if self._thinking is not None and self._open_thought:
            self._thinking.write("\n")
            self._thinking.flush()
            self._open_thought = False

    def end(self) -> None:
        """Ends an answer, also one that was interrupted."""
        self._end_thoughts()
        if self._end_line and not self._at_line_start:
            self._content.write("\n")
        self._thought, self._at_line_start = False, True
        self._content.flush()


def silence_stdout() -> None:
    """Points standard output at nothing after its reader has gone, so that the flush at exit stays quiet."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def describe_os_error(error: OSError) -> str:
    """``<file>: <what>`` for an error of the operating system."""
    what = error.strerror or str(error) or type(error).__name__
    names: list[Any] = [name for name in (error.filename, error.filename2) if name is not None]
    return ": ".join(
        [*(os.fsdecode(name) if isinstance(name, (str, bytes)) else str(name) for name in names), what]
    )
