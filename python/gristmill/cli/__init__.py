"""The ``gristmill`` command. Each command is a file with ``add_parser(subparsers)`` and ``run(args) -> int``.

Only the file of the command that is asked for is imported, and these files import numpy and the like when
they run, so ``--version`` and ``--help`` answer at once.
"""

from __future__ import annotations

import gc
import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gristmill._version import __version__
from gristmill.cli import output
from gristmill.cli.parser import Parser, UsageError
from gristmill.errors import ArgumentError, Error

if TYPE_CHECKING:
    import argparse

COMMANDS: dict[str, str] = {
    "run": "answer a prompt, or chat",
    "info": "show what a GGUF file holds and the memory it needs",
    "tokenize": "print the token ids of a text",
    "bench": "measure how fast a model runs",
    "perplexity": "measure how well a model predicts a text",
    "compare": "measure what formats of a model cost in size, speed and truth",
    "analyze": "show where a quantized file differs from its base",
    "quantize": "write a GGUF file in another format",
    "imatrix": "measure which input channels of a model count, for quantize",
    "pull": "fetch a model into the cache",
}
"""Every command with its line in ``--help``. The file ``<command>.py`` beside this one implements it."""

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
EXIT_PIPE = 141  # what a shell reports for a program that SIGPIPE ended


def build_parser(command: str | None = None) -> Parser:
    """The parser of all commands; only ``command`` has its own flags filled in."""
    parser = Parser(
        prog="gristmill",
        description="Runs GGUF language models.",
        epilog="'gristmill COMMAND --help' lists the flags of a command.",
    )
    parser.add_argument("--version", action="version", version=f"gristmill {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, summary in COMMANDS.items():
        if name == command:
            importlib.import_module(f"gristmill.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def add_command(subparsers: argparse._SubParsersAction[Any], name: str, **kwargs: Any) -> Parser:
    """Adds the parser of command ``name`` with what all commands share."""
    parser = subparsers.add_parser(name, help=COMMANDS[name], **kwargs)
    assert isinstance(parser, Parser)
    # SUPPRESS: the default must not overwrite what '--debug' before the command has set.
    parser.add_argument(
        "--debug", action="store_true", default=_SUPPRESS, help="show the traceback of an error"
    )
    return parser


_SUPPRESS = "==SUPPRESS=="  # argparse.SUPPRESS


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line (without the program's name). Raises ``UsageError``."""
    command = next((word for word in argv if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f", did you mean {near[0]}?" if near else f"; the commands are {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {command!r}{hint}")
    parser = build_parser(command)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.error("a command is needed: " + ", ".join(COMMANDS))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status: 0, 1 (bad input), 2 (bad usage), 130 (Ctrl-C).

    Whatever goes wrong is one line on standard error; ``--debug`` adds the traceback.
    """
    # A vocabulary is 10^5 objects that stay; the default would look through all of them again and again.
    gc.set_threshold(100_000, 20, 20)
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    try:
        output.setup(debug=debug)
        args = parse(argv)
        for text in getattr(args, "warnings", []):
            output.tell("warning", text)
        module = importlib.import_module(f"gristmill.cli.{args.command}")
        status: int = module.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        output.silence_stdout()
        return EXIT_PIPE
    except Exception as error:  # nothing that goes wrong shows as a traceback
        if debug:
            traceback.print_exc()
        return _report(error)
    return status


def _report(error: Exception) -> int:
    if isinstance(error, (UsageError, ArgumentError)):
        output.tell("error", str(error))
        return EXIT_USAGE
    if isinstance(error, Error):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = "out of memory" + (f": {error}" if str(error) else "")
    elif isinstance(error, OSError):
        text = output.describe_os_error(error)
    else:
        text = f"internal error: {type(error).__name__}: {error} (--debug shows where)"
    output.tell("error", text)
    return EXIT_ERROR
