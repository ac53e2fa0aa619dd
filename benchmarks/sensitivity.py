"""Which sensitivity chooses types best: the divergence of files of one size, types chosen by each method.

    python benchmarks/sensitivity.py F16.gguf -f text.txt --size 105454144

The first part of the text is measured on, the divergence that counts is taken from its end. The fixed mix of
``--mix`` gives the size where none is named, and stands in the first line.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import gristmill
from gristmill.imatrix_measure import chunks_of
from gristmill.quantize_file import quantize_file
from gristmill.quantizing.allocate import METHODS, WINDOW, allocate
from gristmill.quantizing.sensitivity import log_probs, mean_divergence


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", type=Path, help="F16 file to choose types for")
    parser.add_argument("--file", "-f", type=Path, required=True, help="text")
    parser.add_argument("--mix", default="Q4_K_M", help="to compare with (default: %(default)s)")
    parser.add_argument("--size", type=int, help="bytes of the files (default: the mix's)")
    parser.add_argument("--methods", default=",".join(METHODS), help="default: %(default)s")
    parser.add_argument("--probe-tokens", type=int, default=256, help="measured on (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=1024, help="of the end, for the result (%(default)s)")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    text = args.file.read_text(encoding="utf-8")
    model = gristmill.load(args.source, n_ctx=WINDOW, n_threads=args.threads, precise=True)
    windows = chunks_of(model, text, WINDOW)[-(args.tokens // WINDOW) :]
    base = log_probs(model, windows)

    def divergence(path: Path) -> float:
        other = gristmill.load(path, n_ctx=WINDOW, n_threads=args.threads, precise=True)
        return mean_divergence(base, other, windows)

    print("| types chosen by | bytes | mean KL, nats | expected | seconds to choose |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "made.gguf"
        mix = quantize_file(args.source, target, args.mix, n_threads=args.threads)
        print(f"| {args.mix} | {mix.n_bytes} | {divergence(target):.4f} | | |", flush=True)
        for by in args.methods.split(","):
            start = time.perf_counter()
            chosen = allocate(
                args.source, text, target_bytes=args.size or mix.n_bytes, by=by,
                probe_tokens=args.probe_tokens, n_threads=args.threads,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            made = quantize_file(
                args.source, target, chosen.mix, exact_types=chosen.types, n_threads=args.threads
            )
            told = f"{chosen.expected:.4f}" if by in ("blocks", "tensors") else ""
            print(
                f"| {by} | {made.n_bytes} | {divergence(target):.4f} | {told} | {seconds:.0f} |", flush=True
            )


if __name__ == "__main__":
    main()
