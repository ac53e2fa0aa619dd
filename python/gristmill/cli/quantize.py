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
from gristmill.cli.inputs import read_text
from gristmill.cli.parser import UsageError
from gristmill.whole_file import check_writable

if TYPE_CHECKING:
    from gristmill.quantize_file import Progress, QuantizeReport
    from gristmill.quantizing.allocate import Allocation

_UNITS = {"": 1} | {
    prefix + i: base**power for i, base in (("", 1000), ("I", 1024)) for power, prefix in enumerate("KMGT", 1)
}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds ``quantize``'s flags; where llama-quantize has the same, they are spelled as there."""
    parser = add_command(
        subparsers,
        "quantize",
        usage="gristmill quantize [flags] IN.gguf OUT.gguf TYPE [THREADS]\n"
        "       gristmill quantize [flags] IN.gguf OUT.gguf --target-size 17.5GB -f TEXT",
        description="Writes IN.gguf as OUT.gguf with its matrices in the formats that TYPE stands for:\n"
        "F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q5_0, Q5_1, Q4_K_M, Q4_K_S, Q4_0, Q4_1, IQ4_NL,\n"
        "IQ4_XS, Q3_K_L, Q3_K_M, Q3_K_S, Q2_K. The choice for each tensor is llama.cpp's. With a size\n"
        "instead of TYPE, each matrix gets the type with which the model as a whole diverges least from\n"
        "IN.gguf, as measured on TEXT.",
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
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--target-size", type=size, metavar="SIZE", help="the most the file may have: 17.5GB")
    goal.add_argument("--bpw", type=positive, metavar="BITS", help="the most bits a weight may have: 4.5")
    parser.add_argument("-f", "--file", metavar="TEXT", help="a text to measure on, with a size or bits")
    parser.add_argument(
        "--probe-tokens", type=integer(128), default=256, metavar="N", help="tokens of it to measure on (256)"
    )
    parser.add_argument(
        "--sensitivity",
        choices=("blocks", "tensors", "outputs", "weights"),
        default="blocks",
        help="what choices rest on: the model's divergence with each layer and each kind of matrix \n"
        "quantized alone (default), with each matrix (slower), or the error of the matrices' outputs, \n"
        "absolute or relative (outputs, weights), without measuring",
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


def positive(text: str) -> float:
    """A number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e3:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bits")
    return value


def run(args: argparse.Namespace) -> int:
    """Quantizes, reports and returns the exit status."""
    with says_interrupted():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from gristmill.quantize_file import quantize_file

    allocation = _allocate(args)
    with progress_bar(quiet=args.quiet or args.dry_run) as progress:
        report = quantize_file(
            Path(args.input),
            Path(args.output),
            allocation.mix if allocation else args.type,
            exact_types=allocation.types if allocation else None,
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

        told = dataclasses.asdict(report)
        if allocation:
            told["allocation"] = dataclasses.asdict(allocation)
        print(json.dumps(told, default=str, indent=1))
    if not args.quiet:
        if allocation:
            _explain(allocation)
        _tell(report, dry_run=args.dry_run)
    return 0


def _allocate(args: argparse.Namespace) -> Allocation | None:
    """The choice of types where a size is asked for; the command line is checked first."""
    if args.target_size is None and args.bpw is None:
        if args.type is None:
            raise UsageError("a type is needed: gristmill quantize IN.gguf OUT.gguf Q4_K_M")
        if args.file is not None:
            raise UsageError("-f is for --target-size and --bpw; with a type there is nothing to measure")
        return None
    if args.type is not None:
        raise UsageError(f"give a type ({args.type}) or a size, not both")
    if args.file is None:
        raise UsageError("a text to measure on is needed: --target-size 17.5GB -f TEXT")
    if args.tensor_type or args.pure or args.output_tensor_type or args.token_embedding_type:
        raise UsageError("with a size, every matrix's type is chosen; flags that set types do not go with it")
    check_writable(Path(args.output))
    text = read_text(args.file)
    from gristmill.imatrix import Imatrix
    from gristmill.quantizing.allocate import allocate

    with progress_bar(quiet=args.quiet, unit="steps") as progress:
        return allocate(
            args.input,
            text,
            target_bytes=args.target_size,
            bits_per_weight=args.bpw,
            imatrix=Imatrix.load(args.imatrix) if args.imatrix else None,
            by=args.sensitivity,
            probe_tokens=args.probe_tokens,
            n_threads=args.threads,
            folder=Path(args.output).parent,
            text_name=args.file,
            progress=progress,
        )


def _explain(allocation: Allocation) -> None:
    """What was chosen and why: the types of each kind of matrix, and the matrices that matter most."""
    kinds: dict[str, Counter[str]] = {}
    for c in allocation.chosen:
        kinds.setdefault(c.name.removesuffix(".weight").rpartition(".")[2], Counter())[c.type] += 1
    for kind, types in kinds.items():
        output.note(output.one_line(f"  {kind:<12} {', '.join(f'{n} {t}' for t, n in types.most_common())}"))
    if allocation.by in ("blocks", "tensors"):
        dear = sorted(allocation.chosen, key=lambda c: c.sensitivity, reverse=True)[:5]
        named = ", ".join(f"{c.name.removesuffix('.weight')} ({c.type})" for c in dear)
        output.note(output.one_line(f"  most sensitive: {named}"))
        gap = allocation.expected - allocation.bound
        proof = "proven least" if gap <= 0 else f"at most {gap:.2g} above the least"
        output.note(f"  expected mean divergence {allocation.expected:.2e} nats, {proof} within the size")


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
def says_interrupted() -> Iterator[None]:
    """Ctrl-C shows as one line, before its exit status."""
    try:
        yield
    except KeyboardInterrupt:
        output.note("[interrupted]")
        raise


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
