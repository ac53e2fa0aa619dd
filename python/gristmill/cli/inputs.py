"""What commands read: a text from the command line, a file or standard input, and the model's path."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gristmill.cli.escapes import decode_utf8, process_escapes
from gristmill.errors import Error


def add_text_flags(group: argparse._ActionsContainer, otherwise: str) -> None:
    """``--prompt``, ``--file``, ``--binary-file`` and ``--escape``, for :func:`given_text`."""
    source = group.add_mutually_exclusive_group()
    source.add_argument("-p", "--prompt", metavar="TEXT", help=otherwise)
    source.add_argument(
        "-f", "--file", metavar="FILE", help="read the text from FILE, without one newline at its end"
    )
    source.add_argument("-bf", "--binary-file", metavar="FILE", help="the same, with that newline")
    group.add_argument(
        "-e",
        "--escape",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="process \\n \\r \\t \\' \\\" \\\\ \\xHH, in a file too (default: yes)",
    )


def given_text(args: argparse.Namespace) -> str | None:
    """The text that the flags name; None if they name none.

    Raises ArgumentError or, for a file, Error when it is not UTF-8, and OSError when a file cannot be read.
    """
    if args.prompt is not None:
        return (
            process_escapes(args.prompt, "--prompt")
            if args.escape
            else argument_text(args.prompt, "--prompt")
        )
    name = args.file if args.file is not None else args.binary_file
    if name is None:
        return None
    text = read_text(name)
    if args.file is not None:
        text = text.removesuffix("\n")
    return process_escapes(text, name) if args.escape else text


def argument_text(text: str, what: str) -> str:
    """An argument as the operating system gave it, which must be UTF-8."""
    return decode_utf8(text.encode("utf-8", "surrogateescape"), what)


def read_text(name: str) -> str:
    """The whole of a text file."""
    return decode_utf8(Path(name).read_bytes(), name, Error)


def read_stdin() -> str:
    """The whole of standard input."""
    return decode_utf8(sys.stdin.buffer.read(), "standard input", Error)


def model_path(args: argparse.Namespace) -> Path:
    """``--model``, or the demo model, which is fetched if it is not there."""
    if args.model is not None:
        return Path(args.model)
    from gristmill.cli.pull import fetch

    return fetch(quiet=getattr(args, "quiet", False), offline=getattr(args, "offline", False))
