"""``gristmill quantize``: a GGUF file in another format."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.cli import add_command, output
from gristmill.cli.flags import integer
from gristmill.cli.parser import UsageError

if TYPE_CHECKING:
    from gristmill.quantize_file import Progress, QuantizeReport

_UNITS = {"": 1} | {
    prefix + i: base**power for i, base in (("", 1000), ("I", 1024)) for power, prefix in enumerate("KMGT", 1)
}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds ``quantize``'s flags; where llama-quantize has the same, they are spelled as there."""
    parser = add_command(
        subparsers,
        "quantize",
        usage="gristmill quantize [flags] IN.gguf OUT.gguf TYPE [THREADS]",
        description="Writes IN.gguf as OUT.gguf with its matrices in the formats that TYPE stands for:\n"
        "F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q5_0, Q5_1, Q4_K_M, Q4_K_S, Q4_0, Q4_1, IQ4_NL,\n"
        "IQ4_XS, Q3_K_L, Q3_K_M, Q3_K_S, Q2_K. The choice for each tensor is llama.cpp's.",
    )
    parser.add_argument("input", metavar="IN.gguf", help="the model, any part of a split one")
    parser.add_argument("output", metavar="OUT.gguf", help="the file to write")
    parser.add_argument("type", metavar="TYPE", nargs="?", help="a mix, as above")
    parser.add_argument("n_threads", metavar="THREADS", nargs="?", type=integer(1), help="as --threads")
    parser.add_argument("-t", "--threads", type=integer(1), metavar="N", help="threads (physical cores)")
    parser.add_argument("--imatrix", metavar="FILE", help="importances that 'gristmill imatrix' measured")
    parser.add_argument(
        "--tensor-type",
        action="append",
        default=[],
        metavar="PATTERN=TYPE",
        help="a type for matrices by a regular expression of their names; repeatable, the first match wins",
    )
    parser.add_argument("--output-tensor-type", metavar="TYPE", help="of the output matrix")
    parser.add_argument("--token-embedding-type", metavar="TYPE", help="of the token embedding")
    parser.add_argument("--leave-output-tensor", action="store_true", help="keep the output matrix as it is")
    parser.add_argument("--pure", action="store_true", help="one format for every matrix")
    parser.add_argument(
        "--requantize",
        "--allow-requantize",
        action="store_true",
        help="convert what is quantized already, at the price of a second rounding",
    )
    parser.add_argument(
        "--split-max-size", type=size, metavar="N(M|G)", help="write parts of at most this size"
    )
    parser.add_argument("--dry-run", action="store_true", help="write nothing; show what would be")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on standard output")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no report")


def size(text: str) -> int:
    """``17.5GB``, ``500M``, ``2GiB``, plain bytes; units are decimal unless they have an ``i``."""
    number = text.rstrip("BbIi").rstrip("KMGTkmgt")
    unit = text[len(number) :].upper().removesuffix("B")
    try:
        value = float(number)
        n = int(value * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        n = 0
    if n <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: 17.5GB, 500M, 2GiB")
    return n


def run(args: argparse.Namespace) -> int:
    """Quantizes, reports and returns the exit status."""
    from gristmill.quantize_file import quantize_file

    if args.type is None:
        raise UsageError("a type is needed: gristmill quantize IN.gguf OUT.gguf Q4_K_M")
    with progress_bar(quiet=args.quiet or args.dry_run) as progress:
        report = quantize_file(
            Path(args.input),
            Path(args.output),
            args.type,
            imatrix=args.imatrix,
            tensor_types=args.tensor_type,
            n_threads=args.threads or args.n_threads,
            requantize=args.requantize,
            progress=progress,
            output_type=args.output_tensor_type,
            embedding_type=args.token_embedding_type,
            leave_output=args.leave_output_tensor,
            pure=args.pure,
            split_max_bytes=args.split_max_size,
            dry_run=args.dry_run,
        )
    if args.json:
        import dataclasses
        import json

        print(json.dumps(dataclasses.asdict(report), default=str, indent=1))
    if not args.quiet:
        _tell(report, dry_run=args.dry_run)
    return 0


def _tell(report: QuantizeReport, *, dry_run: bool) -> None:
    types = Counter(t.type for t in report.tensors)
    counts = ", ".join(f"{n} {type}" for type, n in types.most_common())
    n_fallback = sum(t.reason == "fallback" for t in report.tensors)
    if n_fallback:
        output.note(
            f"[{n_fallback} tensors took a format with smaller blocks: their rows are no multiple of 256]"
        )
    where = (
        report.targets[0] if len(report.targets) == 1 else f"{len(report.targets)} files, {report.targets[0]}"
    )
    output.note(
        output.one_line(
            f"[{where}: {report.n_bytes_source / 1e6:.1f} MB -> {report.n_bytes / 1e6:.1f} MB, "
            f"{report.bits_per_weight:.2f} bits per weight, {counts}"
            + ("; nothing was written]" if dry_run else f", {report.seconds:.1f} s]")
        )
    )


@contextlib.contextmanager
def progress_bar(*, quiet: bool, unit: str = "bytes") -> Iterator[Progress | None]:
    """A progress bar on a terminal; elsewhere nothing, since a report follows."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=escape(output.one_line(what)), completed=done, total=total)

        yield show
