"""Two or more builds of gristmill against each other: living processes that take turns on one model.

    python benchmarks/in_turn.py MODEL.gguf old.so new.so
    python benchmarks/in_turn.py MODEL.gguf old.so new.so --work prompt --tokens 512 --rounds 5
    python benchmarks/in_turn.py MODEL.gguf old.so new.so --work together --sequences 8 --tokens 6

A build is its extension module, ``_core.*.so``, kept under any name; the Python around it is this checkout's.
Each round runs the work once in every process, the order reversed each time, so that a machine that drifts
slows all alike. Ratios are to the first build, in each round; given are the median and the range.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "python" / "gristmill"
# Threads that still look for work would take the next process's time.
REST_S = 0.05


def measure(args: argparse.Namespace) -> None:
    """The process of one build: a line of tokens a second for each line it reads."""
    import gristmill

    n_ctx = args.depth + max(args.tokens, 8) + 8
    cache = args.cache_type
    model = gristmill.load(
        args.model,
        n_threads=args.threads,
        precise=args.precise,
        n_ctx=n_ctx,
        cache_type_k=cache,
        cache_type_v=cache,
    )
    filled: list[Any] = []

    def ids(n: int) -> list[int]:
        return [(i * 7919) % (model.n_vocab - 10) + 5 for i in range(n)]

    def decode(n: int) -> int:
        if not filled:
            filled.append(model.session())
            filled[0].forward(ids(args.depth or 3))
        [session] = filled
        session.truncate(args.depth or 3)
        begin()
        for token in ids(n):
            session.forward([token])
        return n

    def prompt(n: int) -> int:
        session = model.session()
        begin()
        session.forward(ids(n))
        return n

    def together(n: int) -> int:
        sessions = [model.session() for _ in range(args.sequences)]
        for session in sessions:
            session.forward(ids(3))
        begin()
        for token in ids(n):
            model.decode_batch(sessions, [token] * len(sessions))
        return n * len(sessions)

    started = 0.0

    def begin() -> None:
        nonlocal started
        started = time.perf_counter()

    work = {"decode": decode, "prompt": prompt, "together": together}[args.work]
    work(min(args.tokens, 8))
    print("ready", flush=True)
    for _ in sys.stdin:
        n = work(args.tokens)
        print(n / (time.perf_counter() - started), flush=True)


class Build:
    """A process with one build's extension in a copy of the package."""

    def __init__(self, extension: Path, folder: Path, arguments: list[str]) -> None:
        package = folder / "gristmill"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("_core.*.so", "__pycache__"))
        shutil.copy(extension, package / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}")
        self.speeds: list[float] = []
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments, "--measure"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(folder)},
        )
        self._read()

    def run(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.speeds.append(float(self._read()))
        time.sleep(REST_S)

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: a build's process ended with status {self.process.wait()}")
        return line

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    builds: list[Build] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for i, extension in enumerate(args.builds):
                own = Path(folder) / str(i)
                own.mkdir()
                builds.append(Build(extension, own, sys.argv[1:]))
            for r in range(args.rounds):
                for build in builds if r % 2 == 0 else reversed(builds):
                    build.run()
        finally:
            for build in builds:
                build.close()
    rows = []
    for extension, build in zip(args.builds, builds, strict=True):
        ratios = [mine / first for mine, first in zip(build.speeds, builds[0].speeds, strict=True)]
        rows.append(
            {
                "build": str(extension),
                "tokens_per_second": build.speeds,
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "builds", type=Path, nargs="+", help="extension modules; the first is what others are of"
    )
    parser.add_argument("--work", choices=["decode", "prompt", "together"], default="decode")
    parser.add_argument("--tokens", type=int, default=24, help="of a turn; together: of each sequence (24)")
    parser.add_argument("--sequences", type=int, default=8, help="for --work together (8)")
    parser.add_argument("--depth", type=int, default=0, help="tokens behind those that are decoded (3)")
    parser.add_argument("--cache-type", default="f16", help="of keys and values (f16)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("-t", "--threads", type=int, default=None, help="physical cores by default")
    parser.add_argument("--precise", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.tokens, args.rounds, args.sequences) < 1:
        parser.error("--tokens, --rounds and --sequences are at least 1")
    if args.measure:
        return measure(args)
    rows = compare(args)
    behind = f" behind {args.depth}, {args.cache_type}" if args.depth else ""
    print(f"{args.model.name}, {args.work}, {args.tokens} tokens{behind}, {args.rounds} rounds")
    print("| build | tok/s | ratio (min-max) |\n|---|---|---|")
    for row in rows:
        print(
            f"| {Path(row['build']).name} | {statistics.median(row['tokens_per_second']):.1f} | "
            f"{row['ratio']:.3f} ({row['ratio_min']:.3f}-{row['ratio_max']:.3f}) |"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
