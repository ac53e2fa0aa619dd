"""Speed of gristmill against llama.cpp: the same files, the same threads, one run, alternating.

    pip install ".[bench]"
    python benchmarks/vs_llama_cpp.py q4_k_m.gguf q8_0.gguf --threads 2 --json result.json
    python benchmarks/vs_llama_cpp.py q4_k_m.gguf --llama-bench llama.cpp/build/bin/llama-bench

Machines are noisy and drift, so only figures of one run are compared: each round measures both runtimes in
turn, a ratio is taken in every round, and the median ratio is given with the smallest and the largest. Both
compute logits of the last position alone, without sampling; decoding starts from an empty context.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from gristmill.machine import describe_machine

# Threads that still spin after their last work would take the next runtime's time.
REST_S = 0.5


@dataclass(frozen=True)
class Speed:
    """Tokens a second."""

    prefill: float
    decode: float


@dataclass(frozen=True)
class Task:
    n_prompt: int
    n_decode: int
    n_threads: int

    @property
    def n_ctx(self) -> int:
        return max(self.n_prompt, self.n_decode) + 32


class Runtime(Protocol):
    def measure(self) -> Speed: ...


def tokens_per_second(n: int, work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return n / (time.perf_counter() - start)


class Gristmill:
    def __init__(self, path: Path, task: Task) -> None:
        import gristmill

        self._task = task
        self._model = gristmill.load(path, n_ctx=task.n_ctx, n_threads=task.n_threads)
        ids = np.random.default_rng(0).integers(0, self._model.n_vocab, task.n_ctx)
        self._ids = [int(i) for i in ids]
        self._session = self._model.session()

    def _decode(self, n: int) -> None:
        self._session.truncate(0)
        for token in self._ids[:n]:
            self._session.forward([token])

    def _prefill(self, n: int) -> None:
        self._session.truncate(0)
        self._session.forward(self._ids[:n])

    def measure(self) -> Speed:
        self._prefill(16)
        self._decode(2)
        task = self._task
        prefill = tokens_per_second(task.n_prompt, lambda: self._prefill(task.n_prompt))
        decode = tokens_per_second(task.n_decode, lambda: self._decode(task.n_decode))
        return Speed(prefill, decode)


class LlamaCppPython:
    """llama.cpp through llama-cpp-python's low-level interface, which adds no work of its own to a step."""

    def __init__(self, path: Path, task: Task) -> None:
        import llama_cpp

        self._lib, self._task = llama_cpp, task
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            os.fsencode(path), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise SystemExit(f"vs_llama_cpp: {path}: llama.cpp could not load it")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch = task.n_ctx, max(512, task.n_prompt)
        params.n_threads = params.n_threads_batch = task.n_threads
        self._ctx = llama_cpp.llama_init_from_model(self._model, params)
        n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        ids = np.random.default_rng(0).integers(0, n_vocab, task.n_ctx)
        self._ids = (ctypes.c_int32 * len(ids))(*map(int, ids))

    def __del__(self) -> None:
        if getattr(self, "_ctx", None):
            self._lib.llama_free(self._ctx)
            self._lib.llama_model_free(self._model)

    def _clear(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._ctx), True)

    def _step(self, start: int, n: int) -> None:
        tokens = ctypes.cast(ctypes.byref(self._ids, 4 * start), ctypes.POINTER(ctypes.c_int32))
        if self._lib.llama_decode(self._ctx, self._lib.llama_batch_get_one(tokens, n)):
            raise SystemExit("vs_llama_cpp: llama_decode failed")
        self._lib.llama_synchronize(self._ctx)

    def _decode(self, n: int) -> None:
        for i in range(n):
            self._step(i, 1)

    def measure(self) -> Speed:
        task = self._task
        self._clear()
        self._step(0, 16)
        self._clear()
        prefill = tokens_per_second(task.n_prompt, lambda: self._step(0, task.n_prompt))
        self._clear()
        decode = tokens_per_second(task.n_decode, lambda: self._decode(task.n_decode))
        return Speed(prefill, decode)


class LlamaBench:
    """llama.cpp's own benchmark program, started anew each time; it warms up by itself."""

    def __init__(self, program: Path, path: Path, task: Task) -> None:
        self._command = [str(program), "-m", str(path), "-r", "1", "-o", "json"]
        self._command += ["-t", str(task.n_threads), "-p", str(task.n_prompt), "-n", str(task.n_decode)]

    def measure(self) -> Speed:
        done = subprocess.run(self._command, check=False, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise SystemExit(f"vs_llama_cpp: {self._command[0]}: {lines[-1]}")
        prompt, decode = json.loads(done.stdout)
        return Speed(prompt["avg_ts"], decode["avg_ts"])


def llama_cpp_factory(program: Path | None) -> tuple[str, Callable[[Path, Task], Runtime]]:
    """What to call the peer in the result, and what makes it."""
    if program:
        if not os.access(program, os.X_OK):
            raise SystemExit(f"vs_llama_cpp: {program}: no such program")
        return f"llama.cpp ({program.name})", lambda path, task: LlamaBench(program, path, task)
    try:
        import llama_cpp
    except ImportError as error:
        raise SystemExit(
            f"vs_llama_cpp: llama-cpp-python cannot be imported ({error}): "
            'pip install ".[bench]", or give llama.cpp\'s own program with --llama-bench PATH'
        ) from None
    return f"llama.cpp (llama-cpp-python {llama_cpp.__version__})", LlamaCppPython


@dataclass(frozen=True)
class Row:
    """Medians of all rounds; ``ratio`` is gristmill's speed divided by llama.cpp's."""

    file: str
    work: str
    gristmill: float
    llama_cpp: float
    ratio: float
    ratio_min: float
    ratio_max: float


def compare(path: Path, task: Task, rounds: int, make_peer: Callable[[Path, Task], Runtime]) -> list[Row]:
    runtimes: list[Runtime] = [Gristmill(path, task), make_peer(path, task)]
    measured: list[list[Speed]] = [[], []]
    for i in range(rounds):
        # Who goes first changes too: the second finds the machine warmer.
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            time.sleep(REST_S)
            measured[which].append(runtimes[which].measure())
        print(f"{path.name}: round {i + 1} of {rounds}", file=sys.stderr)
    rows = []
    for work, label in (("prefill", f"prefill {task.n_prompt}"), ("decode", f"decode {task.n_decode}")):
        ours, theirs = ([getattr(speed, work) for speed in speeds] for speeds in measured)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        medians = map(statistics.median, (ours, theirs, ratios))
        rows.append(Row(path.name, label, *medians, min(ratios), max(ratios)))
    return rows


def print_table(rows: list[Row], peer: str) -> None:
    print(f"| file | work | gristmill tok/s | {peer} tok/s | ratio (min-max) |")
    print("|---|---|---|---|---|")
    for r in rows:
        spread = f"{r.ratio:.2f} ({r.ratio_min:.2f}-{r.ratio_max:.2f})"
        print(f"| {r.file} | {r.work} | {r.gristmill:.1f} | {r.llama_cpp:.1f} | {spread} |")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--threads", "-t", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--prompt", "-p", type=int, default=512, help="tokens to prefill (default: %(default)s)"
    )
    parser.add_argument(
        "--decode", "-n", type=int, default=64, help="tokens to decode (default: %(default)s)"
    )
    parser.add_argument("--rounds", "-r", type=int, default=5)
    parser.add_argument(
        "--llama-bench", type=Path, metavar="PATH", help="llama.cpp's program, instead of Python"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    import gristmill

    peer, make_peer = llama_cpp_factory(args.llama_bench)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"vs_llama_cpp: the machine is busy (load {load:.1f}); expect noise", file=sys.stderr)
    task = Task(args.prompt, args.decode, args.threads)
    rows = [row for path in args.files for row in compare(path, task, args.rounds, make_peer)]
    print_table(rows, peer)
    if args.json:
        result = {
            "machine": asdict(describe_machine()),
            "load_before": load,
            "gristmill": gristmill.__version__,
            "peer": peer,
            "threads": args.threads,
            "rounds": args.rounds,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "results": [asdict(row) for row in rows],
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
