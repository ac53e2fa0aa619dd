"""What one rendering may use, and the count of what it has used."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2.runtime import Undefined

_SCALARS = (int, float, bool, type(None), Undefined)
_CLOCK_EVERY = 256  # steps


@dataclass(frozen=True)
class Limits:
    """Limits of one rendering. ``steps`` count iterations, calls, comparisons and every 256 characters of
    text worked on, so they stop a template at the same point on every machine; ``seconds`` is a second
    line. ``memory`` is the sum, in bytes, of all values made, kept or not; 16 times a chat's own size come on
    top.
    """

    steps: int = 500_000
    seconds: float = 5.0
    memory: int = 128 << 20
    output: int = 16 << 20  # characters
    depth: int = 64  # macros and recursive loops within each other
    source: int = 64 << 10  # characters of the template itself
    nodes: int = 10_000  # of its syntax tree: compiling takes some 100 us for each


class LimitExceeded(Exception):  # noqa: N818 - it names what happened
    """A limit was reached. Nothing that a template can do catches it."""


class Meter:
    """Charges work against :class:`Limits`. Every method raises :class:`LimitExceeded`, and once one has, all
    do from then on.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._steps = limits.steps
        self._memory = limits.memory
        self._until_clock = _CLOCK_EVERY
        self._deadline = time.monotonic() + limits.seconds
        self.depth = 0

    def grant(self, memory: int) -> None:
        """Allow for ``memory`` more bytes of values."""
        self._memory += memory

    def step(self, n: int = 1) -> None:
        self._steps -= n
        self._until_clock -= n
        if self._steps < 0:
            raise LimitExceeded(f"the limit of {self.limits.steps} steps")
        if self._until_clock < 0:
            self._until_clock = _CLOCK_EVERY
            if time.monotonic() > self._deadline:
                self._steps = -1
                raise LimitExceeded(f"the limit of {self.limits.seconds:g} seconds")

    def text(self, length: int) -> None:
        """Charge work on ``length`` characters."""
        self.step(1 + (length >> 8))

    def memory(self, size: int) -> None:
        """Charge ``size`` bytes that are about to be allocated."""
        self._memory -= size
        self.step(1 + (size >> 12))
        if self._memory < 0:
            self._steps = -1
            raise LimitExceeded(f"the limit of {self.limits.memory >> 20} MiB for values")

    def repeated(self, value: str | list[Any] | tuple[Any, ...], length: int) -> None:
        """Charge a copy of ``value`` stretched to ``length`` elements."""
        width = (sys.getsizeof(value) // len(value) + 1 if value else 1) if isinstance(value, str) else 8
        self.memory(max(length, 0) * min(width, 4 if isinstance(value, str) else 8))

    def result(self, value: Any) -> Any:
        """Charge a value just made, one level deep, and return it."""
        kind = type(value)
        if kind is str or kind is list or kind is tuple or kind is dict:
            self.memory(sys.getsizeof(value))
        return value

    def weigh(self, value: Any) -> int:
        """Charge a walk through ``value`` as the tree that printing, comparing or hashing would see, in which
        a shared part counts each time. Returns its size in bytes.

        Raises TypeError for anything but strings, numbers, None, undefined, lists, tuples and dicts of them.
        """
        total = 0
        pending = [value]
        while pending:
            item = pending.pop()
            kind = type(item)
            if kind is str:
                size = sys.getsizeof(item)
                total += size
                self.text(size)
                continue
            self.step()
            total += 16
            if kind is list or kind is tuple:
                pending.extend(item)
                self.step(len(item) >> 4)
            elif kind is dict:
                pending.extend(item.keys())
                pending.extend(item.values())
                self.step(len(item) >> 4)
            elif isinstance(item, int):
                total += item.bit_length() >> 1
            elif not isinstance(item, _SCALARS):
                raise TypeError(f"a {kind.__name__} cannot be used as a value here")
        return total


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of ``value`` out of exact str, int, float, bool, None, list and dict, so that no method of
    another type, and nothing of the caller's, can be reached. Raises TypeError that says ``where``.
    """
    if depth > 64:
        raise TypeError(f"{where} is nested too deeply")
    kind = type(value)
    if value is None or kind in (str, int, float, bool):
        return value
    for base in (str, int, float):
        if isinstance(value, base):  # a subclass, such as an enumeration's member
            return base.__str__(value) if base is str else base(value)
    if isinstance(value, Mapping):
        return {
            plain(k, f"a key of {where}", depth + 1): plain(v, f"{where}.{k}", depth + 1)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise TypeError(f"{where} is of type {kind.__name__}, expected text, numbers, None, lists and dicts")
