"""``gristmill pull``: fetches a model into the cache and prints where it is."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.cli import add_command, output
from gristmill.errors import DownloadError

if TYPE_CHECKING:
    from gristmill.pull import Progress

DEMO = "smollm2-135m"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds ``pull``'s flags."""
    parser = add_command(
        subparsers,
        "pull",
        description="Fetches a model into the cache ($GRISTMILL_CACHE) and prints its path. Goes on from\n"
        f"where it was broken off. Known: {DEMO}, the demo model of 'gristmill run' without --model.",
    )
    parser.add_argument("name", nargs="?", default=DEMO, help=f"(default: {DEMO})")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Fetches and prints the path on standard output."""
    print(fetch(args.name, quiet=args.quiet))
    return 0


def fetch(name: str = DEMO, *, quiet: bool = False, offline: bool = False) -> Path:
    """The model's path in the cache; fetches it with a progress bar on standard error unless ``offline``."""
    from gristmill import pull

    if pull.is_fetched(name):
        return pull.demo_path(name)
    if offline:
        raise DownloadError(f"{pull.demo_path(name)}: not there, and --offline forbids fetching it")
    with _bar(quiet=quiet) as progress:
        return pull.fetch_demo(name, progress)


@contextlib.contextmanager
def _bar(*, quiet: bool) -> Iterator[Progress | None]:
    """A progress bar on a terminal; single lines, one per step, elsewhere."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        steps: set[str] = set()

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in steps:
                steps.add(what)
                size = f" ({total / 1e6:.0f} MB)" if total else ""
                output.note(f"[{what}{size}]")

        yield tell
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
    ) as bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: int, total: int | None) -> None:
            if bar.tasks[0].description != what:
                bar.reset(task, description=what)
            bar.update(task, completed=done, total=total)

        yield show
