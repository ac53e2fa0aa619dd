"""Progress on standard error: a bar on a terminal, elsewhere a line for each new step, or nothing."""

from __future__ import annotations

import contextlib
import sys
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
