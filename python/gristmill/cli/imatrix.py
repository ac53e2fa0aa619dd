"""``gristmill imatrix``: which input channels of a model's matrices count."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gristmill.cli import add_command, output
from gristmill.cli.flags import integer
from gristmill.cli.inputs import model_path, read_text
from gristmill.cli.parser import UsageError
from gristmill.cli.quantize import progress_bar, says_interrupted
from gristmill.whole_file import check_writable


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds ``imatrix``'s flags; where llama-imatrix has the same, they are spelled as there."""
    parser = add_command(
        subparsers,
        "imatrix",
        usage="gristmill imatrix -m FILE -f TEXT -o imatrix.gguf [flags]",
        description="Reads a text and sums the squared inputs of every matrix, in llama.cpp's file format,\n"
        "for 'gristmill quantize --imatrix' or llama-quantize. Take the model in F16 or near to it.",
    )
    parser.add_argument("-m", "--model", metavar="FILE", help="GGUF file (default: the demo model)")
    parser.add_argument("-f", "--file", metavar="TEXT", help="a text of the kind that the model will serve")
    parser.add_argument(
        "-o", "--output", default="imatrix.gguf", metavar="FILE", help="file to write (imatrix.gguf)"
    )
    parser.add_argument(
        "-c", "--ctx-size", type=integer(1), default=512, metavar="N", help="tokens of a chunk (512)"
    )
    parser.add_argument("--chunks", type=integer(1), metavar="N", help="stop after N chunks")
    parser.add_argument("--process-output", action="store_true", help="measure the output matrix too")
    parser.add_argument("-t", "--threads", type=integer(1), metavar="N", help="threads (physical cores)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Measures, writes the file and returns the exit status."""
    if args.file is None:
        raise UsageError("no text is given: gristmill imatrix -m FILE -f TEXT")
    check_writable(Path(args.output))
    text = read_text(args.file)
    from gristmill.imatrix_measure import measure_imatrix

    with says_interrupted(), progress_bar(quiet=args.quiet, unit="chunks") as progress:
        imatrix = measure_imatrix(
            model_path(args),
            text,
            chunk_size=args.ctx_size,
            n_chunks=args.chunks,
            process_output=args.process_output,
            dataset=args.file,
            n_threads=args.threads,
            progress=progress,
        )
    imatrix.save(Path(args.output))
    if not args.quiet:
        what = (
            f"{len(imatrix.entries)} matrices over {imatrix.n_chunks} chunks of {imatrix.chunk_size} tokens"
        )
        output.note(output.one_line(f"[{args.output}: {what}]"))
    return 0
