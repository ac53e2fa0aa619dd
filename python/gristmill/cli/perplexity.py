"""``gristmill perplexity``: how well a model predicts a text."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from gristmill.cli import add_command, output
from gristmill.cli.flags import CACHE_TYPES, add_override_flags, integer
from gristmill.cli.inputs import model_path, read_text

if TYPE_CHECKING:
    from gristmill.lab.score import PerplexityResult


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds ``perplexity``'s flags; where llama-perplexity has the same, they are spelled as there."""
    parser = add_command(
        subparsers,
        "perplexity",
        usage="gristmill perplexity -m FILE -f TEXT [flags]",
        description="Prints the perplexity of a model on a text, by llama-perplexity's method: windows of\n"
        "--ctx-size tokens, each begun with BOS where the vocabulary adds one, of which the second\n"
        "half is scored. The number after ± is its standard error.",
    )
    parser.add_argument("-m", "--model", metavar="FILE", help="GGUF file (default: the demo model)")
    add_window_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with the perplexity of each window")
    add_run_flags(parser)
    add_override_flags(parser)


def add_window_flags(parser: argparse._ActionsContainer, default_windows: int = -1) -> None:
    """``--file``, ``--ctx-size`` and ``--windows``, for commands that score a text."""
    parser.add_argument("-f", "--file", metavar="TEXT", help="the text, in UTF-8; '-' is standard input")
    parser.add_argument(
        "-c",
        "--ctx-size",
        type=integer(8, 2**31 - 1),
        default=512,
        metavar="N",
        help="tokens of a window (512)",
    )
    usual = "-1: all" if default_windows < 0 else f"{default_windows}; -1: all"
    parser.add_argument(
        "--windows",
        "--chunks",
        type=integer(-1),
        default=default_windows,
        metavar="N",
        help=f"windows to use ({usual})",
    )


def add_run_flags(parser: argparse._ActionsContainer) -> None:
    """Threads, cache types and quiet, for commands that run models over a text."""
    parser.add_argument(
        "-t",
        "--threads",
        type=integer(1, 1024),
        default=None,
        metavar="N",
        help="threads (default: physical cores)",
    )
    for flag, long, of in (("-ctk", "--cache-type-k", "keys"), ("-ctv", "--cache-type-v", "values")):
        parser.add_argument(flag, long, choices=CACHE_TYPES, default="f16", help=f"type of cached {of} (f16)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def window_text(args: argparse.Namespace) -> tuple[str, str]:
    """The text and what messages call it; as llama.cpp reads ``--file``, without one newline at its end."""
    from gristmill.cli.inputs import read_stdin
    from gristmill.cli.parser import UsageError

    if args.file is None:
        raise UsageError("a text is needed: --file TEXT")
    if args.file == "-":
        return read_stdin().removesuffix("\n"), "standard input"
    return read_text(args.file).removesuffix("\n"), args.file


def n_windows(args: argparse.Namespace) -> int | None:
    """``--windows`` as the library takes it: None for all."""
    return None if args.windows < 0 else int(args.windows)


def run(args: argparse.Namespace) -> int:
    """Prints the perplexity and returns the exit status."""
    text, source = window_text(args)
    import gristmill
    from gristmill.cli.bars import step_bar
    from gristmill.lab import cut, perplexity
    from gristmill.metadata import parse_overrides

    model = gristmill.load(
        model_path(args),
        n_ctx=args.ctx_size,
        n_threads=args.threads,
        overrides=parse_overrides(*args.override_kv),
        cache_type_k=args.cache_type_k,
        cache_type_v=args.cache_type_v,
        precise=True,
    )
    windows = cut(model.tokenizer, text, args.ctx_size, n_windows(args), source)
    so_far = ""
    with step_bar(quiet=args.quiet) as show:

        def progress(done: int, total: int, value: float) -> None:
            nonlocal so_far
            so_far = f"{value:.4f} after {done} of {total} windows"
            show(f"perplexity {value:.4f}", done, total)

        try:
            result = perplexity(model, windows, progress=progress)
        except KeyboardInterrupt:
            if so_far:
                output.note(f"[interrupted: perplexity {so_far}]")
            raise
    sys.stdout.write(_json(result) if args.json else _line(result))
    return 0


def _line(result: PerplexityResult) -> str:
    left = result.n_tokens - result.n_windows * result.n_ctx
    windows = f"{result.n_windows} window{'s' * (result.n_windows != 1)} of {result.n_ctx}"
    return (
        f"perplexity {result.perplexity:.4f} ± {result.stderr:.4f} "
        f"({windows}, {result.n_scored} tokens scored, {left} left over)\n"
    )


def _json(result: PerplexityResult) -> str:
    record = {
        "model": result.model,
        "perplexity": result.perplexity,
        "stderr": result.stderr,
        "mean_nll": result.mean_nll,
        "n_ctx": result.n_ctx,
        "n_windows": result.n_windows,
        "n_scored": result.n_scored,
        "n_tokens": result.n_tokens,
        "windows": result.by_window().tolist(),
    }
    return json.dumps(record, indent=2) + "\n"
