"""``gristmill compare``: what each format of a model costs in size, speed and truth."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.cli import add_command, output
from gristmill.cli.flags import integer
from gristmill.cli.inputs import read_text
from gristmill.cli.parser import UsageError
from gristmill.cli.perplexity import add_window_flags, n_windows, window_text
from gristmill.errors import Error
from gristmill.whole_file import check_writable, whole_file

if TYPE_CHECKING:
    from gristmill.lab.comparison import CompareResult


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds ``compare``'s flags."""
    parser = add_command(
        subparsers,
        "compare",
        usage="gristmill compare BASE.gguf [A.gguf B.gguf ...] [--formats LIST] -f TEXT [flags]",
        description="Measures models against BASE over a text, in one table: size, bits per weight, memory,\n"
        "load time, speeds, perplexity, KL divergence from BASE (mean, 99th percentile, largest), how\n"
        "often both think the same token most likely, and how often continuations fall into a\n"
        "repetition. --formats quantizes BASE into the cache and measures the results.",
    )
    parser.add_argument("base", nargs="?", metavar="BASE.gguf", help="the model to measure from")
    parser.add_argument("models", nargs="*", metavar="A.gguf", help="models with the same vocabulary")
    parser.add_argument(
        "--formats", type=_words, default=[], metavar="LIST", help="such as Q8_0,Q6_K,Q4_K_M,Q4_0"
    )
    parser.add_argument(
        "--requantize", action="store_true", help="allow a BASE that is quantized itself, for --formats"
    )
    parser.add_argument("--imatrix", metavar="FILE", help="importances for --formats")
    parser.add_argument("--cache", metavar="DIR", help="where --formats keeps its files")
    add_window_flags(parser)
    group = parser.add_argument_group("speed, memory and loops")
    group.add_argument(
        "--memory-ctx",
        type=integer(1, 2**31 - 1),
        default=4096,
        metavar="N",
        help="positions that the memory column is for (4096)",
    )
    group.add_argument(
        "-p", "--n-prompt", type=integer(1), default=512, metavar="N", help="tokens of the prefill (512)"
    )
    group.add_argument("-n", "--n-gen", type=integer(1), default=32, metavar="N", help="tokens decoded (32)")
    group.add_argument(
        "-r", "--rounds", type=integer(0), default=3, metavar="N", help="rounds, of which the median counts "
        "(3; 0: no speeds)",
    )  # fmt: skip
    group.add_argument("--prompts", metavar="FILE", help="prompts to continue, one a line (16 of its own)")
    group.add_argument(
        "--loop-tokens",
        type=integer(0),
        default=None,
        metavar="N",
        help="tokens of a continuation at most (192; 0: no loops)",
    )
    group.add_argument(
        "-s", "--seed", type=integer(0, 2**31), default=1, metavar="N", help="of sampled continuations (1)"
    )
    parser.add_argument(
        "-t", "--threads", type=integer(1, 1024), metavar="N", help="threads (default: physical cores)"
    )
    out = parser.add_argument_group("output")
    shape = out.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print JSON, with each window and continuation")
    shape.add_argument("--csv", action="store_true", help="print CSV")
    out.add_argument("--html", metavar="FILE", help="write a page with table and charts, complete in itself")
    out.add_argument("--plot", metavar="FILE", help="draw FILE (.png, .svg or .pdf); needs matplotlib")
    out.add_argument("--theme", choices=("light", "dark", "both"), default="light", help="of --plot (light)")
    out.add_argument("-q", "--quiet", action="store_true", help="no progress")


def _words(text: str) -> list[str]:
    """An argparse type: words, separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def run(args: argparse.Namespace) -> int:
    """Measures, writes and returns the exit status."""
    if args.base is None:
        raise UsageError("a base is needed: gristmill compare BASE.gguf --formats Q8_0,Q4_K_M -f TEXT")
    if args.plot is not None:
        from gristmill.lab.plot import check_plot

        check_plot(args.plot, args.theme)
    for name in (args.html, args.plot):
        if name is not None:
            check_writable(Path(name))
    text, source = window_text(args)
    prompts = None if args.prompts is None else _prompts(args.prompts)
    from gristmill.cli.bars import step_bar
    from gristmill.lab.comparison import compare
    from gristmill.lab.prompts import PROMPTS
    from gristmill.lab.repetition import DEFAULT_TOKENS

    at = ""
    with step_bar(quiet=args.quiet, lines=True) as show:

        def progress(what: str, done: int, total: int) -> None:
            nonlocal at
            at = f"{what}, {done} of {total}"
            show(what, done, total)

        try:
            result = compare(
                args.base,
                args.models,
                text=text,
                source=source,
                formats=args.formats,
                requantize=args.requantize,
                imatrix=args.imatrix,
                cache=args.cache,
                n_ctx=args.ctx_size,
                n_windows=n_windows(args),
                memory_ctx=args.memory_ctx,
                n_prompt=args.n_prompt,
                n_decode=args.n_gen,
                rounds=args.rounds,
                prompts=PROMPTS if prompts is None else prompts,
                loop_tokens=DEFAULT_TOKENS if args.loop_tokens is None else args.loop_tokens,
                seed=args.seed,
                n_threads=args.threads,
                progress=progress,
            )
        except KeyboardInterrupt:
            if at:
                output.note(output.one_line(f"[interrupted at {at}; quantized files stay in the cache]"))
            raise
    _write(args, result)
    return 0


def _write(args: argparse.Namespace, result: CompareResult) -> None:
    from gristmill.lab.comparison_report import as_csv, as_json, as_markdown, print_table

    if args.json:
        sys.stdout.write(as_json(result))
    elif args.csv:
        sys.stdout.write(as_csv(result.rows))
    elif sys.stdout.isatty():
        print_table(result)
    else:
        sys.stdout.write(as_markdown(result))
    sys.stdout.flush()
    if args.html is not None:
        from gristmill.lab.comparison_html import as_html

        with whole_file(Path(args.html)) as partial:
            partial.write_text(as_html(result), encoding="utf-8")
    if args.plot is not None:
        from gristmill.lab.plot import plot_comparison

        plot_comparison(result, args.plot, args.theme)


def _prompts(name: str) -> list[str]:
    prompts = [line.strip() for line in read_text(name).splitlines() if line.strip()]
    if not prompts:
        raise Error(f"{name}: holds no prompts, one a line")
    return prompts
