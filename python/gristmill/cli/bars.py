"""Progress on standard error: a bar on a terminal, elsewhere a line for each new step, or nothing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from gristmill.cli import output

Show = Callable[[str, int, int], None]
"""Called with what runs now, the steps of it that are done, and all there are."""


@contextlib.contextmanager
def step_bar(*, quiet: bool, lines: bool = False, elapsed: bool = False) -> Iterator[Show]:
    """A bar on a terminal. Elsewhere nothing or, with ``lines``, a line whenever the description changes.

    ``elapsed``: the bar says how long it has run, where steps differ too much to foretell the rest.
    """
    if quiet or not sys.stderr.isatty():
        last = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal last
            if lines and not quiet and what != last:
                output.note(f"[{output.one_line(what)}]")
                last = what

        yield tell
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr)
    clock = TimeElapsedColumn() if elapsed else TimeRemainingColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), clock)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=escape(output.one_line(what)), completed=done, total=total)

        yield show


@contextlib.contextmanager
def byte_bar(what: str, *, quiet: bool, after: float = 0.5) -> Iterator[Callable[[int, int], None] | None]:
    """A bar of bytes on a terminal, once they take more than ``after`` seconds; elsewhere None."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
    task = bar.add_task(escape(output.one_line(what)), total=None)
    began, shown = time.monotonic(), False

    def show(done: int, total: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - began > after:
            bar.start()
            shown = True
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        if shown:
            bar.stop()
