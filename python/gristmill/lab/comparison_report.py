"""A comparison as text: a table for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from gristmill._version import __version__
from gristmill.lab.comparison import CompareResult, ModelRow
from gristmill.machine import describe_machine
from gristmill.messages import printable

Cell = Callable[[ModelRow], str]


def columns(result: CompareResult) -> dict[str, Cell]:
    """The table's headings and how a row fills each; what was not measured has no column."""
    of: dict[str, Cell] = {
        "model": lambda r: printable(r.name, 40),
        "size": lambda r: size(r.file_bytes),
        "bits/weight": lambda r: f"{r.bits_per_weight:.2f}",
        f"memory at {result.settings.memory_ctx}": lambda r: size(r.memory_bytes),
    }
    if result.speeds:
        of |= {
            "load, s": lambda r: f"{r.load_seconds:.2f}",
            "prefill, tok/s": lambda r: rate(r.prefill_tps),
            "decode, tok/s": lambda r: rate(r.decode_tps),
        }
    of |= {
        "perplexity": lambda r: f"{r.perplexity:.3f} ± {r.perplexity_stderr:.3f}",
        "mean KL": lambda r: nats(r.mean_kl) if r is not result.base else "base",
        "p99 KL": lambda r: nats(r.p99_kl) if r is not result.base else "",
        "max KL": lambda r: nats(r.max_kl) if r is not result.base else "",
        "same top token": lambda r: f"{100 * r.top1_agreement:.2f} %" if r is not result.base else "",
    }
    if result.loops:
        of["loops, greedy / sampled"] = lambda r: (
            f"{100 * (r.greedy_loop_rate or 0):.0f} % / {100 * (r.sampled_loop_rate or 0):.0f} %"
        )
    return of


def cells(result: CompareResult) -> tuple[list[str], list[list[str]]]:
    """Headings, and the cells of each row."""
    of = columns(result)
    return list(of), [[cell(row) for cell in of.values()] for row in result.rows]


def as_markdown(result: CompareResult) -> str:
    """The table, and below it what it was measured on."""
    headings, rows = cells(result)
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(result))]) + "\n"


def print_table(result: CompareResult) -> None:
    """The table on a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    headings, rows = cells(result)
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(Text(heading), justify="left" if heading == "model" else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for line in notes(result):
        console.print(Text(line, style="dim"))


def notes(result: CompareResult) -> list[str]:
    """What the figures were measured on, in a few lines."""
    s = result.settings
    lines = [
        f"perplexity and divergence from {printable(result.base.name)}, in nats: {printable(s.text)}, "
        f"{s.n_windows} windows of {s.n_ctx} tokens, {s.n_scored} scored",
        f"memory: weights and an f16 KV cache of {s.memory_ctx} positions",
    ]
    if result.speeds:
        threads = "1 thread" if s.n_threads == 1 else f"{s.n_threads} threads"
        lines.append(
            f"speed: {threads}, {s.isa}, prefill of {s.n_prompt}, {s.n_decode} decoded, median of {s.rounds}"
        )
    if result.loops:
        lines.append(
            f"loops: share of {s.n_loop_prompts} prompts whose continuation of up to {s.loop_tokens} tokens "
            f"falls into a repetition; sampled with seeds {s.seed} to {s.seed + s.n_loop_prompts - 1}"
        )
    return lines


def as_json(result: CompareResult) -> str:
    """Rows, settings and machine, with the figures of each window and what each prompt became."""
    return json.dumps(to_dict(result), indent=2) + "\n"


def to_dict(result: CompareResult) -> dict[str, Any]:
    """What :func:`as_json` writes, as plain lists and dicts."""
    models: list[dict[str, Any]] = []
    for i, row in enumerate(result.rows):
        record = dataclasses.asdict(row)
        if i:
            against = result.divergences[i - 1]
            record["kl_by_window"] = against.kl.mean(axis=1).tolist()
            record["perplexity_by_window"] = against.scores.by_window().tolist()
        else:
            record["perplexity_by_window"] = result.base_scores.by_window().tolist()
        if result.speeds:
            speed = result.speeds[i]
            record["speed_rounds"] = {"load": speed.load, "prefill": speed.prefill, "decode": speed.decode}
        if result.loops:
            record["continuations"] = [
                {"prompt": c.prompt, "mode": c.mode, "seed": c.seed, "ended": c.ended, "period": c.period,
                 "n_tokens": len(c.tokens), "text": c.text}
                for c in result.loops[i].continuations
            ]  # fmt: skip
        models.append(record)
    return {
        "gristmill": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": dataclasses.asdict(describe_machine()),
        "settings": dataclasses.asdict(result.settings),
        "models": models,
    }


def as_csv(rows: Sequence[ModelRow]) -> str:
    """The rows with a line of headings; what was not measured is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in dataclasses.fields(ModelRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return out.getvalue()


def size(n: int) -> str:
    """Bytes in decimal units."""
    return f"{n / 1e9:.2f} GB" if n >= 10**9 else f"{n / 1e6:.1f} MB"


def rate(value: float | None) -> str:
    """Tokens a second, three digits at least."""
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def nats(value: float) -> str:
    """A divergence with three digits."""
    return f"{value:.1e}" if 0 < value < 1e-4 else f"{value:#.3g}"
