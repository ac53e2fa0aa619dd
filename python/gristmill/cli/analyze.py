"""``gristmill analyze``: where a quantized file differs from its base."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from gristmill.cli import add_command, output
from gristmill.cli.flags import integer
from gristmill.cli.parser import UsageError
from gristmill.cli.perplexity import add_window_flags, n_windows, window_text


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds ``analyze``'s flags."""
    parser = add_command(
        subparsers,
        "analyze",
        usage="gristmill analyze BASE.gguf MODEL.gguf [-f TEXT] [--plot DIR] [flags]",
        description="Compares the weights of MODEL with those of BASE, tensor by tensor, and the output of\n"
        "each layer on a text. Names what stands out.",
    )
    parser.add_argument("base", nargs="?", metavar="BASE.gguf", help="the file to measure from")
    parser.add_argument("model", nargs="?", metavar="MODEL.gguf", help="a quantization of it")
    add_window_flags(parser, default_windows=4)
    parser.add_argument(
        "-t", "--threads", type=integer(1, 1024), metavar="N", help="threads (default: physical cores)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every tensor")
    parser.add_argument("--plot", metavar="DIR", help="draw weights.png and activations.png there")
    parser.add_argument(
        "--theme", choices=("light", "dark", "both"), default="light", help="of --plot (light)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Analyzes, prints, draws and returns the exit status."""
    if args.base is None or args.model is None:
        raise UsageError("two files are needed: gristmill analyze BASE.gguf MODEL.gguf")
    if args.plot is not None:
        from pathlib import Path

        from gristmill.lab.plot import check_plot

        check_plot(Path(args.plot) / "weights.png", args.theme)
    text, source = (None, "") if args.file is None else window_text(args)
    from gristmill.cli.bars import step_bar
    from gristmill.lab.analysis import analyze
    from gristmill.lab.analysis_report import as_json, as_text

    with step_bar(quiet=args.quiet) as show:
        result = analyze(
            args.base,
            args.model,
            text=text,
            source=source,
            n_ctx=args.ctx_size,
            n_windows=n_windows(args),
            n_threads=args.threads,
            progress=show,
        )
    sys.stdout.write(as_json(result) if args.json else as_text(result))
    sys.stdout.flush()
    if text is None and not args.quiet:
        output.note("[weights alone; --file TEXT measures activations too]")
    if args.plot is not None:
        from gristmill.lab.analysis_plot import plot_analysis

        plot_analysis(result, args.plot, args.theme)
    return 0
