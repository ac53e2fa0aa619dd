"""Each format's matrix product alone, against the limit that binds it.

    python benchmarks/kernels/matmul.py
    python benchmarks/kernels/matmul.py --formats Q4_0,Q4_K --shape 8960x1536 --tokens 1,8,512 --isa avx2

Up to 8 tokens run on the decoding kernels: the product has to read the weights, and its rate is given in GB/s
of them and as a share of what the threads can read. More run on the prefill kernels, given in GOP/s and as a
share of what they can multiply. Both shares are in the JSON. Quantizing the activations counts as part of the
product, as it does when a model runs. Copies of the matrix are cycled, so that no cache holds the weights
when they are needed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, replace

import numpy as np
from common import Yardstick, common_parser, numbers, report, words
from gristmill import _core
from gristmill.bench_kernels import peak_of
from gristmill.errors import Error
from gristmill.quants import Format, format_named, formats
from oracle.blocks import random_blocks

DECODE_TOKENS = 8  # the most that one pass of a decoding kernel serves


@dataclass(frozen=True)
class Row:
    """One product: its median and fastest call in seconds, rates and shares at the median."""

    format: str
    isa: str
    threads: int
    rows: int
    columns: int
    tokens: int
    kernel: str
    calls: int
    seconds: float
    seconds_best: float
    gb_per_s: float
    gop_per_s: float
    share_of_bandwidth: float = 0.0
    share_of_peak: float = 0.0


def measure(format: Format, isa: str, threads: int, tokens: int, args: argparse.Namespace) -> Row:
    m, k = args.shape
    packed = random_blocks(format.name, m, k, np.random.default_rng(0), k**-0.5)
    decode = tokens <= DECODE_TOKENS
    times = _core.time_matmul(
        packed,
        format.type_id,
        k,
        tokens,
        decode,
        threads,
        weight_bytes=args.weight_mib << 20,
        large_pages=not args.small_pages,
        seconds=args.seconds,
        isa=isa,
    ).tolist()
    median = statistics.median(times)
    return Row(
        format=format.name,
        isa=isa,
        threads=threads,
        rows=m,
        columns=k,
        tokens=tokens,
        kernel="decode" if decode else "prefill",
        calls=len(times),
        seconds=median,
        seconds_best=min(times),
        gb_per_s=packed.nbytes / median / 1e9,
        gop_per_s=2 * m * k * tokens / median / 1e9,
    )


def against(row: Row, yardstick: Yardstick) -> Row:
    limits = yardstick[row.isa, row.threads]
    peak = peak_of(row.format, row.kernel, limits)
    return replace(
        row, share_of_bandwidth=row.gb_per_s / limits.read_gb_s, share_of_peak=row.gop_per_s / peak
    )


def shape(text: str) -> tuple[int, int]:
    """An argparse type: ``MxK``, rows and columns of the weights."""
    m, k = text.lower().split("x")
    if int(m) < 1 or int(k) < 1:
        raise ValueError
    return int(m), int(k)


def parse_args() -> argparse.Namespace:
    parser = common_parser(__doc__)
    known = ",".join(format.name for format in formats())
    parser.add_argument("--formats", type=words, default=words(known), metavar="LIST", help=f"(all: {known})")
    parser.add_argument("--shape", type=shape, default=(8960, 1536), metavar="MxK", help="(8960x1536)")
    parser.add_argument("--tokens", type=numbers, default=[1, 8, 512], metavar="LIST", help="(1,8,512)")
    parser.add_argument("--isa", type=words, default=None, metavar="LIST", help="(the best here)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each product (1)")
    parser.add_argument("--weight-mib", type=int, default=256, help="copies of the weights cycled (256)")
    parser.add_argument(
        "--small-pages", action="store_true", help="weights on small pages, as mapped files mostly are"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    isas = args.isa or _core.supported_isas()[:1]
    yardstick = Yardstick(min(args.seconds, 0.4))
    rows = []
    try:
        for isa in isas:
            for threads in args.threads:
                yardstick.see(isa, threads)
                for format in map(format_named, args.formats):
                    for tokens in args.tokens:
                        rows.append(measure(format, isa, threads, tokens, args))
                        print(f"{format.name} {isa} {threads} {tokens}", file=sys.stderr)
        limits = yardstick.settle()
    except (Error, ValueError) as error:
        raise SystemExit(f"matmul: {error}") from None
    columns = {
        "format": lambda r: r.format,
        "isa": lambda r: r.isa,
        "threads": lambda r: str(r.threads),
        "shape": lambda r: f"{r.rows}x{r.columns}",
        "tokens": lambda r: str(r.tokens),
        "ms": lambda r: f"{1e3 * r.seconds:.3f}",
        "rate": lambda r: f"{r.gb_per_s:.1f} GB/s" if r.kernel == "decode" else f"{r.gop_per_s:.0f} GOP/s",
        "share": lambda r: (
            f"{100 * r.share_of_bandwidth:.0f} % of memory"
            if r.kernel == "decode"
            else f"{100 * r.share_of_peak:.0f} % of peak"
        ),
    }
    report([against(row, yardstick) for row in rows], limits, columns, args.json)


if __name__ == "__main__":
    main()
