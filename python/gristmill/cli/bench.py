"""``gristmill bench``: how fast a model runs, and what share that is of what the machine can do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.cli import add_command
from gristmill.cli.bars import step_bar
from gristmill.cli.device_flags import add_device_flags, device_arguments
from gristmill.cli.flags import CACHE_TYPES, add_override_flags, add_precise_flag, integer
from gristmill.cli.inputs import model_path
from gristmill.cli.parser import UsageError

if TYPE_CHECKING:
    from gristmill.bench import BenchResult
    from gristmill.bench_work import BenchTest

_FORMATS = {".json": "json", ".csv": "csv", ".md": "markdown"}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds ``bench``'s flags; where llama-bench has the same, they are spelled as there."""
    parser = add_command(
        subparsers,
        "bench",
        usage="gristmill bench -m FILE [-m FILE ...] [flags]\n       gristmill bench --kernels [flags]",
        description="Measures prefill (pp) and decoding (tg) in tokens a second, and the share of what the\n"
        "machine can do, measured in the same run: reading memory, or multiply-adds. Where a flag\n"
        "takes LIST, numbers are separated by commas, and each is measured.",
    )
    parser.add_argument(
        "-m",
        "--model",
        action="append",
        metavar="FILE",
        help="GGUF file; repeatable (default: the demo model)",
    )
    parser.add_argument(
        "-p", "--n-prompt", type=_list(0), default=[512], metavar="LIST", help="tokens to prefill (512)"
    )
    parser.add_argument(
        "-n", "--n-gen", type=_list(0), default=[128], metavar="LIST", help="tokens to decode (128)"
    )
    parser.add_argument(
        "-b", "--sequences", type=_list(1), default=[1], metavar="LIST", help="sequences decoded together (1)"
    )
    parser.add_argument(
        "-d",
        "--n-depth",
        "--depth",
        type=_list(0),
        default=[0],
        metavar="LIST",
        help="tokens of context before the test (0)",
    )
    parser.add_argument(
        "-t",
        "--threads",
        type=_list(1, 1024),
        default=[],
        metavar="LIST",
        help="threads (default: physical cores)",
    )
    parser.add_argument(
        "-r", "--repetitions", type=integer(1), default=5, metavar="N", help="times each test is measured (5)"
    )
    for flag, long, of in (("-ctk", "--cache-type-k", "keys"), ("-ctv", "--cache-type-v", "values")):
        parser.add_argument(flag, long, choices=CACHE_TYPES, default="f16", help=f"type of cached {of} (f16)")
    add_precise_flag(parser)
    add_device_flags(parser)
    add_override_flags(parser)
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="measure each format's kernels alone, without a model: unpacking, and products of one "
        "token and of --n-prompt tokens",
    )
    parser.add_argument(
        "--formats",
        type=lambda text: text.split(","),
        default=None,
        metavar="LIST",
        help="of --kernels (all)",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print JSON, the machine described with it")
    shape.add_argument("--csv", action="store_true", help="print CSV")
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help="write FILE, as --json or --csv say or else its suffix (.json, .csv, .md), and print a table",
    )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def _list(low: int, high: int | None = None) -> Any:
    """An argparse type: whole numbers, separated by commas."""
    parse = integer(low, high)

    def parse_list(text: str) -> list[int]:
        return [parse(word) for word in text.split(",")]

    return parse_list


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and returns the exit status; an error or Ctrl-C loses nothing that was measured."""
    path, shape = _output(args)
    if args.kernels:
        return _run_kernels(args, path, shape)
    if args.formats is not None:
        raise UsageError("--formats says which formats --kernels measures")
    from gristmill.bench import at_best_limits
    from gristmill.bench_report import as_csv, as_json, as_markdown, print_table
    from gristmill.bench_work import plan

    tests = plan(args.n_prompt, args.n_gen, args.sequences, args.n_depth)
    if not tests:
        raise UsageError("nothing to measure: --n-prompt and --n-gen are both 0")
    results: list[BenchResult] = []
    try:
        for result in _measure(args, tests):
            results.append(result)
    finally:
        if results:
            results = at_best_limits(results)
            write = {"json": as_json, "csv": as_csv, "markdown": as_markdown}[shape]
            if path is not None:
                path.write_text(write(results), encoding="utf-8")
            if path is None and shape != "markdown":
                sys.stdout.write(write(results))
            elif sys.stdout.isatty():
                print_table(results)
            else:
                sys.stdout.write(as_markdown(results))
            sys.stdout.flush()
    return 0


def _run_kernels(args: argparse.Namespace, path: Path | None, shape: str) -> int:
    """``--kernels``: what was measured until an error or Ctrl-C is printed all the same."""
    from gristmill.bench_kernels import (
        KernelResult,
        as_csv,
        as_json,
        as_markdown,
        at_best_limits,
        bench_kernels,
    )

    if args.model:
        raise UsageError("--model has no effect with --kernels, which measures without a model")
    results: list[KernelResult] = []
    threads = args.threads or [None]
    try:
        with step_bar(lines=True, elapsed=True, quiet=args.quiet) as show:
            for i, n_threads in enumerate(threads):

                def progress(what: str, done: int, total: int, i: int = i) -> None:
                    show(what, i * total + done, len(threads) * total)

                for result in bench_kernels(
                    args.formats or (), n_threads=n_threads, n_prompt=max(args.n_prompt), progress=progress
                ):
                    results.append(result)
    finally:
        if results:
            results = at_best_limits(results)
            text = {"json": as_json, "csv": as_csv, "markdown": as_markdown}[shape](results)
            if path is not None:
                path.write_text(text, encoding="utf-8")
            sys.stdout.write(as_markdown(results) if path is not None else text)
            sys.stdout.flush()
    return 0


def _output(args: argparse.Namespace) -> tuple[Path | None, str]:
    """Where results go and how they are written; checked before any time is spent on measuring."""
    shape = "json" if args.json else "csv" if args.csv else None
    if args.output is None:
        return None, shape or "markdown"
    path = Path(args.output)
    shape = shape or _FORMATS.get(path.suffix.lower())
    if shape is None:
        raise UsageError(
            f"--output {args.output}: expected a file that ends in {', '.join(_FORMATS)}, or --json or --csv"
        )
    with path.open("a", encoding="utf-8"):
        pass
    return path, shape


def _measure(args: argparse.Namespace, tests: list[BenchTest]) -> Iterator[BenchResult]:
    import gristmill
    from gristmill.bench import run as run_tests
    from gristmill.gguf import GGUFFile
    from gristmill.metadata import parse_overrides

    overrides, devices = parse_overrides(*args.override_kv), device_arguments(args)
    names = args.model or [str(model_path(argparse.Namespace(model=None, quiet=args.quiet)))]
    for name in names:
        GGUFFile.open(name).close()  # the last file's error is told before the first one's hour
    runs = [(name, n_threads) for name in names for n_threads in args.threads or [None]]
    with step_bar(lines=True, elapsed=True, quiet=args.quiet) as show:
        for i, (name, n_threads) in enumerate(runs):
            model = gristmill.load(
                name,
                n_ctx=max(test.n_positions for test in tests),
                n_threads=n_threads,
                overrides=overrides,
                cache_type_k=args.cache_type_k,
                cache_type_v=args.cache_type_v,
                precise=args.precise,
                **devices,
            )

            def progress(what: str, done: int, total: int, i: int = i, model: Any = model) -> None:
                where = f"threads {model.n_threads}" if model.device == "cpu" else model.device
                what = f"{model.path.name}, {where}: {what}"
                show(what, i * total + done, len(runs) * total)

            yield from run_tests(model, tests, args.repetitions, progress=progress)
