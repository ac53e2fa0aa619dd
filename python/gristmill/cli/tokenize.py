"""``gristmill tokenize``: the token ids of a text."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from gristmill.cli import add_command
from gristmill.cli.escapes import process_escapes
from gristmill.cli.flags import add_override_flags
from gristmill.cli.inputs import add_text_flags, argument_text, given_text, model_path, read_stdin
from gristmill.cli.output import for_terminal
from gristmill.cli.parser import UsageError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds ``tokenize``'s flags, llama-tokenize's among them."""
    parser = add_command(
        subparsers,
        "tokenize",
        usage="gristmill tokenize -m FILE [flags] TEXT",
        description="Prints the ids of the tokens of TEXT, separated by spaces. A file with a vocabulary\n"
        "and no tensors will do. Escapes are processed in TEXT as in 'gristmill run --prompt'.",
    )
    parser.add_argument("text", nargs="?", metavar="TEXT", help="the text; '-' is standard input")
    parser.add_argument("-m", "--model", metavar="FILE", help="GGUF file (default: the demo model)")
    add_text_flags(parser, "the same as TEXT, for a text that begins with a dash")
    parser.add_argument("--stdin", action="store_true", help="the same as TEXT '-'")
    parser.add_argument("--no-bos", action="store_true", help="add no tokens at the beginning or the end")
    parser.add_argument(
        "--parse-special",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read '<|im_start|>' and the like as one token (default: yes)",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--ids", action="store_true", help="print a list as in Python: [1, 2, 3]")
    shape.add_argument("--show", action="store_true", help="print a line for each token: its id and its text")
    add_override_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the ids and returns the exit status."""
    text = _text(args)
    from gristmill.metadata import parse_overrides
    from gristmill.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_gguf(model_path(args), overrides=parse_overrides(*args.override_kv))
    ids = tokenizer.encode(text, add_special=not args.no_bos, parse_special=args.parse_special)
    if args.ids:
        print(ids)
    elif args.show:
        for token in ids:
            print(f"{token:>8}  {for_terminal(repr(tokenizer.token_text(token)))}")
    else:
        print(*ids)
    return 0


def _text(args: argparse.Namespace) -> str:
    given = given_text(args)
    sources = [given, args.text, "-" if args.stdin else None]
    if sum(source is not None for source in sources) > 1:
        raise UsageError("more than one text is given")
    if given is not None:
        return given
    if args.stdin or args.text == "-" or (args.text is None and not sys.stdin.isatty()):
        return read_stdin()
    if args.text is None:
        raise UsageError("no text is given: gristmill tokenize -m FILE TEXT")
    return process_escapes(args.text, "TEXT") if args.escape else argument_text(args.text, "TEXT")
