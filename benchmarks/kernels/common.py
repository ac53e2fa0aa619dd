"""What the kernel benchmarks share: lists on the command line, printing of tables and JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "python"))

import gristmill
from gristmill import _core
from gristmill.bench_report import limits_line
from gristmill.limits import Limits, measure_limits
from gristmill.machine import describe_machine


def numbers(text: str) -> list[int]:
    """An argparse type: whole numbers above or equal to zero, separated by commas."""
    values = [int(word) for word in text.split(",")]
    if min(values) < 0:
        raise argparse.ArgumentTypeError(f"expected numbers of at least 0, got {text}")
    return values


def words(text: str) -> list[str]:
    """An argparse type: words, separated by commas."""
    return text.split(",")


def common_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the flags of all kernel benchmarks."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "-t", "--threads", type=numbers, default=[_core.default_thread_count()], metavar="LIST"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write everything there as well ('-': there alone, to stdout)",
    )
    return parser


class Yardstick:
    """Limits by instruction set and threads: measured when first asked for and again at :meth:`settle`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._limits: dict[tuple[str, int], Limits] = {}

    def see(self, isa: str, n_threads: int) -> None:
        """Measures unless this was measured before."""
        if (isa, n_threads) not in self._limits:
            self._limits[isa, n_threads] = measure_limits(n_threads, isa, seconds=self.seconds)

    def settle(self) -> list[Limits]:
        """Measures all a second time, after the kernels, and keeps the best."""
        for (isa, n_threads), limits in self._limits.items():
            again = measure_limits(n_threads, isa, seconds=self.seconds)
            self._limits[isa, n_threads] = limits.best(again)
        return list(self._limits.values())

    def __getitem__(self, key: tuple[str, int]) -> Limits:
        return self._limits[key]


def report(
    rows: Sequence[Any], limits: Sequence[Limits], columns: dict[str, Callable[[Any], str]], to: Path | None
) -> None:
    """Prints a Markdown table of dataclass ``rows`` and the limits; writes all as JSON if asked to."""
    if to is not None:
        document = {
            "gristmill": gristmill.__version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": dataclasses.asdict(describe_machine()),
            "limits": [dataclasses.asdict(each) for each in limits],
            "results": [dataclasses.asdict(row) for row in rows],
        }
        text = json.dumps(document, indent=2) + "\n"
        if str(to) == "-":
            sys.stdout.write(text)
            return
        to.write_text(text, encoding="utf-8")
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(cell(row) for cell in columns.values()) + " |")
    print()
    for each in limits:
        print(f"limits of {limits_line(each)}")
