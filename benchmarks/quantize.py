"""Quantizes one file to every type with gristmill and llama-quantize, in turns, and compares their times.

    python benchmarks/quantize.py model-F16.gguf --llama-quantize LLAMA_CPP/bin/llama-quantize --threads 2

Each time is that of a whole process, from its start to the renamed file; of several rounds the shortest
counts. Prints a table; ``--json`` writes every round. What is written is deleted after each run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gristmill.machine import describe_machine

TYPES = (
    "Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K_S,Q3_K_M,Q3_K_L,Q4_K_S,Q4_K_M,Q5_K_S,Q5_K_M,Q6_K,IQ4_NL,IQ4_XS,F16,"
    "BF16"
)


@dataclass(frozen=True, slots=True)
class Run:
    """One process: seconds on the clock, and of processors in user and system mode."""

    type: str
    program: str
    round: int
    seconds: float
    user: float
    system: float
    n_bytes: int


def measure(type: str, program: str, round: int, command: list[str], target: Path) -> Run:
    """Runs the command, whose output is shown only if it fails."""
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)}: exit {process.returncode}\n{log.read().decode(errors='replace')}")
    n_bytes = target.stat().st_size
    target.unlink()
    return Run(type, program, round, seconds, used.ru_utime, used.ru_stime, n_bytes)


def commands(args: argparse.Namespace, type: str, target: Path) -> dict[str, list[str]]:
    pure = ["--pure"] if args.pure else []
    theirs = [args.llama_quantize, "--allow-requantize", *pure, args.source, target, type, args.threads]
    ours = [
        sys.executable, "-m", "gristmill", "quantize", "-q", "--requantize", *pure,
        "-t", args.threads, args.source, target, type,
    ]  # fmt: skip
    return {"llama-quantize": [str(part) for part in theirs], "gristmill": [str(part) for part in ours]}


def table(runs: list[Run]) -> str:
    """Markdown: shortest wall clock of each, their ratio, and the ratio of processor time."""
    lines = ["| type | bytes | llama-quantize, s | gristmill, s | ratio | of processor time |"]
    lines.append("|---|---|---|---|---|---|")
    for type in dict.fromkeys(run.type for run in runs):
        best = {
            program: (
                min(run.seconds for run in runs if (run.type, run.program) == (type, program)),
                min(run.user + run.system for run in runs if (run.type, run.program) == (type, program)),
            )
            for program in ("llama-quantize", "gristmill")
        }
        size = next(run.n_bytes for run in runs if (run.type, run.program) == (type, "gristmill"))
        (theirs, their_cpu), (ours, our_cpu) = best["llama-quantize"], best["gristmill"]
        lines.append(
            f"| {type} | {size} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} | "
            f"{their_cpu / our_cpu:.2f} |"
        )
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", type=Path, help="GGUF file to quantize")
    parser.add_argument("--llama-quantize", required=True, metavar="FILE", help="llama.cpp's program")
    parser.add_argument("--types", default=TYPES, help="default: %(default)s")
    parser.add_argument("--threads", "-t", type=int, default=1, help="of each program (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="of both programs in turn (default: %(default)s)"
    )
    parser.add_argument("--pure", action="store_true", help="one format everywhere")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary one)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # ends the program being measured too
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for type in args.types.split(","):
            target = Path(folder) / f"{type}.gguf"
            for round in range(args.rounds):
                for program, command in commands(args, type, target).items():
                    run = measure(type, program, round, command, target)
                    runs.append(run)
                    print(f"{type} {program}: {run.seconds:.2f} s", file=sys.stderr)
    print(table(runs))
    if args.json:
        record = {
            "machine": asdict(describe_machine()),
            "source": args.source.name,
            "source_bytes": args.source.stat().st_size,
            "threads": args.threads,
            "pure": args.pure,
            "runs": [asdict(run) for run in runs],
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
