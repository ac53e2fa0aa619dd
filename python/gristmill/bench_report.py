"""Benchmark results as text: JSON, CSV, a Markdown table, and a table for a terminal."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from collections.abc import Sequence
from typing import Any

from gristmill._version import __version__
from gristmill.bench import BenchResult
from gristmill.limits import Limits
from gristmill.machine import describe_machine
from gristmill.messages import printable

HEADINGS = (
    "model",
    "format",
    "size",
    "params",
    "isa",
    "activations",
    "threads",
    "test",
    "tok/s",
    "best",
    "rate",
    "of the limit",
)
_NUMBERS = frozenset(("size", "params", "threads", "tok/s", "best", "rate", "of the limit"))


def records_as_json(records: Sequence[dict[str, Any]]) -> str:
    """An object with the version, the time, the machine, and the records."""
    document = {
        "gristmill": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": dataclasses.asdict(describe_machine()),
        "results": list(records),
    }
    return json.dumps(document, indent=2) + "\n"


def records_as_csv(records: Sequence[dict[str, Any]]) -> str:
    """The records, all with the same keys, below a line of headings; nothing where there are none."""
    out = io.StringIO()
    if records:
        writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return out.getvalue()


def as_json(results: Sequence[BenchResult]) -> str:
    """An object with the version, the time, the machine, and a flat record for each result."""
    return records_as_json([result.to_dict() for result in results])


def as_csv(results: Sequence[BenchResult]) -> str:
    """The records of :func:`as_json` with a line of headings; samples are separated by spaces."""
    records = [result.to_dict() for result in results]
    return records_as_csv([r | {"samples": " ".join(map(str, r["samples"]))} for r in records])


def as_markdown(results: Sequence[BenchResult]) -> str:
    """A table, and below it the limits that the shares are of."""
    lines = [
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "|".join("---:" if name in _NUMBERS else "---" for name in HEADINGS) + "|",
    ]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row(r)) + " |" for r in results]
    return "\n".join([*lines, "", *limit_lines(results)]) + "\n"


def print_table(results: Sequence[BenchResult]) -> None:
    """The same on a terminal: a table for each model, with what is the same for all in its title."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    tables: dict[str, Table] = {}
    shared = HEADINGS.index("threads")
    for result in results:
        cells = row(result)
        title = ", ".join(cells[:shared])
        if title not in tables:
            tables[title] = Table(title=Text(title), title_justify="left")
            for name in HEADINGS[shared:]:
                tables[title].add_column(name, justify="right" if name in _NUMBERS else "left")
        tables[title].add_row(*(Text(cell) for cell in cells[shared:]))
    for table in tables.values():
        console.print(table)
    for line in limit_lines(results):
        console.print(Text(line, style="dim"))


def row(result: BenchResult) -> tuple[str, ...]:
    """The cells of one result, in the order of ``HEADINGS``; the rate is that of the nearer limit."""
    rate = f"{result.gb_per_s:.1f} GB/s" if result.bound == "memory" else f"{result.gop_per_s:.0f} GOP/s"
    return (
        printable(result.model, 60),
        result.format,
        _size(result.model_bytes),
        _count(result.n_parameters),
        result.limits.isa,
        f"{result.prefill_bits}-bit {result.prefill_arithmetic} prefill",
        str(result.limits.n_threads),
        result.test.name,
        f"{result.mean:.2f} ± {result.stddev:.2f}",
        f"{result.best:.2f}",
        rate,
        f"{100 * result.share:.0f} % {result.bound}",
    )


def limit_lines(results: Sequence[BenchResult]) -> list[str]:
    """The limits, a line for each instruction set and number of threads, and one for each file in memory."""
    limits = dict.fromkeys(result.limits for result in results)
    files: dict[tuple[str, int], float] = {}
    for result in results:
        key = (printable(result.model, 60), result.limits.n_threads)
        files[key] = max(files.get(key, 0.0), result.file_gb_s)
    return [f"limits of {limits_line(each)}" for each in limits] + [
        f"read from {name} as it lies in memory, {_threads(n)}: {gb_s:.1f} GB/s"
        for (name, n), gb_s in files.items()
        if gb_s
    ]


def limits_line(limits: Limits) -> str:
    """The limits of some threads, or of some devices, in words."""
    if limits.tensor_gop_s:
        text = f"{limits.isa}: read {limits.read_gb_s:.0f} GB/s"
        text += f", copy {limits.copy_gb_s:.0f} GB/s" if limits.copy_gb_s else ""
        return f"{text}, products of halves {limits.tensor_gop_s / 1e3:.1f} TOP/s"
    text = f"{_threads(limits.n_threads)}, {limits.isa}: read {limits.read_gb_s:.1f} GB/s"
    text += f", int8 {limits.int8_gop_s:.0f} GOP/s, float32 {limits.float32_gop_s:.0f} GOP/s"
    for name, gop_s in (("bfloat16", limits.bfloat16_gop_s), ("int16", limits.int16_gop_s)):
        if gop_s:
            text += f", {name} {gop_s:.0f} GOP/s"
    return text


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


def _size(n: int) -> str:
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.2f} MiB"


def _count(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 10**9 else f"{n / 1e6:.2f} M"
