"""Attention over a context alone: what a step takes longer the more a sequence holds.

    python benchmarks/kernels/attention.py
    python benchmarks/kernels/attention.py --depths 1024,8192 --cache-types f16,q8_0 --heads 40 --kv-heads 8

A made model with hardly anything but attention runs through a session: one token, or a prompt of --prompt
tokens, at each depth and with an empty context. The difference is what attending to the depth costs. For one
token it is given in GB/s of the keys and values that it reads and as a share of what the threads can read;
for a prompt in GOP/s, 4 operations for each query head, head dimension, position and token, and as a share
of float32's peak.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import gristmill
import numpy as np
from common import Yardstick, common_parser, numbers, report, words
from gristmill.bench_work import kv_bytes_per_position
from gristmill.errors import Error
from oracle.build import Spec, build


@dataclass(frozen=True)
class Row:
    """Seconds of the whole step, and what the depth adds to it; rates are 0 where that drowns in noise."""

    isa: str
    threads: int
    cache_type: str
    depth: int
    tokens: int
    seconds: float
    seconds_attention: float
    gb_per_s: float
    gop_per_s: float
    share_of_bandwidth: float = 0.0
    share_of_peak: float = 0.0

    @property
    def arithmetic(self) -> str:
        """What multiplies a prompt's queries: tiles do it three times, with two bfloat16 for each number."""
        return "bfloat16" if self.isa == "amx_bf16" and self.cache_type != "f32" else "float32"


def step_seconds(session: gristmill.Session, depth: int, ids: np.ndarray, repetitions: int) -> float:
    """Fastest forward of ``ids`` after ``depth`` positions, which the session holds or more.

    The fastest, since two of these are subtracted. Single tokens are quick, so they are repeated more often.
    """
    times = []
    for _ in range(repetitions * (20 if len(ids) == 1 else 1) + 1):
        session.truncate(depth)
        start = time.perf_counter()
        session.forward(ids)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(path: Path, threads: int, cache_type: str, args: argparse.Namespace) -> list[Row]:
    n_ctx = max(args.depths) + args.prompt
    model = gristmill.load(
        path, n_ctx=n_ctx, n_threads=threads, cache_type_k=cache_type, cache_type_v=cache_type
    )
    ids = np.random.default_rng(0).integers(0, model.n_vocab, n_ctx)
    session = model.session()
    tokens = [n for n in (1, args.prompt) if n]
    empty = {n: step_seconds(session, 0, ids[:n], args.repetitions) for n in tokens}
    session.truncate(0)
    rows = []
    for depth in sorted(args.depths):
        session.truncate(min(session.n_past, depth))
        if depth > session.n_past:
            session.forward(ids[session.n_past : depth])
        for n in tokens:
            seconds = step_seconds(session, depth, ids[:n], args.repetitions)
            more = seconds - empty[n]
            ops = 4 * args.layers * args.heads * args.head_dim * depth * n
            kv_bytes = float(kv_bytes_per_position(model)) * depth
            rows.append(
                Row(
                    model.isa,
                    threads,
                    cache_type,
                    depth,
                    n,
                    seconds,
                    more,
                    kv_bytes / more / 1e9 if more > 0 else 0.0,
                    ops / more / 1e9 if more > 0 else 0.0,
                )
            )
            print(f"{cache_type}, {threads} threads, depth {depth}, {n} tokens", file=sys.stderr)
    return rows


def against(row: Row, yardstick: Yardstick) -> Row:
    limits = yardstick[row.isa, row.threads]
    return replace(
        row,
        share_of_bandwidth=row.gb_per_s / limits.read_gb_s,
        share_of_peak=row.gop_per_s / limits.gop_s_of(row.arithmetic),
    )


def parse_args() -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument(
        "--depths", type=numbers, default=[512, 2048, 8192], metavar="LIST", help="(512,2048,8192)"
    )
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt; 0: one token only (512)")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument(
        "--cache-types", type=words, default=["f16", "q8_0"], metavar="LIST", help="(f16,q8_0)"
    )
    parser.add_argument("--repetitions", "-r", type=int, default=5)
    args = parser.parse_args()
    if min(args.depths) < 1 or min(args.prompt + 1, args.repetitions, args.layers) < 1:
        parser.error("depths, layers and repetitions are at least 1, --prompt at least 0")
    return args


def main() -> None:
    args = parse_args()
    n_ctx = max(args.depths) + args.prompt + 1
    spec = Spec(
        n_layer=args.layers, n_embd=256, n_head=args.heads, n_head_kv=args.kv_heads, head_dim=args.head_dim,
        n_ff=256, n_ctx=n_ctx, formats="Q8_0",
    )  # fmt: skip
    yardstick = Yardstick(0.4)
    rows = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = build(Path(folder) / "attention.gguf", spec)
            for threads in args.threads:
                for cache_type in args.cache_types:
                    rows += measure(path, threads, cache_type, args)
                yardstick.see(rows[-1].isa, threads)
        limits = yardstick.settle()
    except Error as error:
        raise SystemExit(f"attention: {error}") from None
    columns = {
        "isa": lambda r: r.isa,
        "threads": lambda r: str(r.threads),
        "cache": lambda r: r.cache_type,
        "depth": lambda r: str(r.depth),
        "tokens": lambda r: str(r.tokens),
        "ms": lambda r: f"{1e3 * r.seconds:.3f}",
        "of which attention to the depth": lambda r: f"{1e3 * r.seconds_attention:.3f}",
        "rate": lambda r: f"{r.gb_per_s:.1f} GB/s" if r.tokens == 1 else f"{r.gop_per_s:.0f} GOP/s",
        "share": lambda r: (
            f"{100 * r.share_of_bandwidth:.0f} % of memory"
            if r.tokens == 1
            else f"{100 * r.share_of_peak:.0f} % of {r.arithmetic}"
        ),
    }
    report([against(row, yardstick) for row in rows], limits, columns, args.json)


if __name__ == "__main__":
    main()
