"""The methods of built-in types that templates may call, each charged before it runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any

from jinja2.filters import _GroupTuple
from jinja2.runtime import LoopContext, Macro
from jinja2.utils import Cycler

_MAX_WIDTH = 1000  # of a formatted field
_BIG_NUMBER = re.compile(r"\d{4,}")


# Searching from the end and stripping compare each character with all of the argument at worst.
_QUADRATIC = frozenset(["strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition", "rsplit"])


class Method:
    """A method bound to its receiver, as a template holds it; :meth:`Guarded.call` runs it."""

    __slots__ = ("name", "receiver")

    def __init__(self, receiver: Any, name: str) -> None:
        self.receiver = receiver
        self.name = name


class _SafeFormatter(Formatter):
    """``str.format`` that resolves fields as the template itself would, with bounded widths."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        first, *rest = re.findall(r"[^.\[\]]+|[.\[]", field_name) or [""]
        obj = self.get_value(int(first) if first.isdigit() else first, args, kwargs)
        for opener, name in zip(rest[::2], rest[1::2], strict=False):
            get = self._env.getattr if opener == "." else self._env.getitem
            obj = get(obj, int(name) if opener == "[" and name.isdigit() else name)
        return obj, first

    def format_field(self, value: Any, format_spec: str) -> str:
        if _BIG_NUMBER.search(format_spec):
            raise ValueError(f"field width in {format_spec[:20]!r} is too large")
        if not isinstance(value, int | float):
            value = self._env.text(value)
        text = format(value, format_spec)
        self._env.meter.memory(len(text) * 4 + _MAX_WIDTH)
        return text

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._env.meter.memory(4 * self._env.meter.weigh(value))
        return super().convert_field(value, conversion)


def _format(env: Any, text: str, *args: Any, **kwargs: Any) -> str:
    env.meter.memory(4 * len(text))
    return _SafeFormatter(env).vformat(text, args, kwargs)


def _format_map(env: Any, text: str, mapping: Any) -> str:
    if not isinstance(mapping, Mapping):
        raise TypeError("format_map expects a dict")
    env.meter.memory(4 * len(text))
    return _SafeFormatter(env).vformat(text, (), mapping)


def _plain(name: str) -> Callable[..., Any]:
    """A method whose result is a small multiple of its receiver."""

    def run(env: Any, receiver: Any, *args: Any, **kwargs: Any) -> Any:
        for arg in (*args, *kwargs.values()):
            env.comparable(arg)
        # Pieces of a split text cost some 60 bytes each, of which a receiver of n characters has n at most.
        if isinstance(receiver, str) and name in _QUADRATIC:
            longest = max((len(arg) for arg in (*args, *kwargs.values()) if isinstance(arg, str)), default=0)
            env.meter.step(len(receiver) * longest >> 12)
        if "split" in name:
            env.meter.memory(sys.getsizeof(receiver) + 80 * _pieces(receiver, args))
        else:
            env.comparable(receiver)
            if isinstance(receiver, str):
                env.meter.memory(3 * sys.getsizeof(receiver))
        return getattr(receiver, name)(*args, **kwargs)

    return run


def _pieces(text: str, args: tuple[Any, ...]) -> int:
    if args and isinstance(args[0], str) and args[0]:
        return text.count(args[0])
    return len(text) // 2


def _padded(name: str) -> Callable[..., str]:
    def run(env: Any, text: str, width: int, *args: Any) -> str:
        env.meter.repeated(text, max(width, len(text)))
        env.meter.memory(4 * max(width, 0))
        result: str = getattr(text, name)(width, *args)
        return result

    return run


def replaced(env: Any, text: str, old: str, new: str, count: int = -1) -> str:
    """``text.replace(old, new, count)``."""
    if not (isinstance(old, str) and isinstance(new, str) and isinstance(count, int)):
        raise TypeError("replace expects texts")
    found = text.count(old)
    if count >= 0:
        found = min(found, count)
    env.meter.memory(4 * (len(text) + found * max(len(new) - len(old), 0)))
    return text.replace(old, new, count)


def _join(env: Any, text: str, parts: Any) -> str:
    pieces = env.collected(parts)
    env.meter.memory(sum(map(sys.getsizeof, pieces)) + sys.getsizeof(text) * len(pieces))
    return text.join(pieces)


def _expandtabs(env: Any, text: str, tabsize: int = 8) -> str:
    env.meter.memory(4 * (len(text) + text.count("\t") * max(tabsize, 0)))
    return text.expandtabs(tabsize)


def _entries(name: str) -> Callable[..., Any]:
    def run(env: Any, mapping: dict[Any, Any]) -> Any:
        env.meter.memory(64 * len(mapping))
        return list(getattr(mapping, name)())

    return run


def _get(env: Any, mapping: dict[Any, Any], key: Any, default: Any = None) -> Any:
    return mapping.get(env.comparable(key), default)


def _cycle(env: Any, loop: LoopContext, *values: Any) -> Any:
    return loop.cycle(*values)


def _changed(env: Any, loop: LoopContext, *values: Any) -> bool:
    for value in values:
        env.comparable(value)
    return loop.changed(*values)


_TEXT = """
capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower
isnumeric isprintable isspace istitle isupper lower lstrip partition removeprefix removesuffix rfind rindex
rpartition rsplit rstrip split splitlines startswith strip swapcase title upper
""".split()  # noqa: SIM905

METHODS: dict[type, dict[str, Callable[..., Any]]] = {
    str: {
        **{name: _plain(name) for name in _TEXT},
        **{name: _padded(name) for name in ("center", "ljust", "rjust", "zfill")},
        "replace": replaced,
        "join": _join,
        "expandtabs": _expandtabs,
        "format": _format,
        "format_map": _format_map,
    },
    list: {name: _plain(name) for name in ("count", "index", "copy")},
    tuple: {name: _plain(name) for name in ("count", "index")},
    dict: {
        **{name: _entries(name) for name in ("items", "keys", "values")},
        "get": _get,
        "copy": _plain("copy"),
    },
    float: {"is_integer": lambda env, value: value.is_integer()},
    LoopContext: {"cycle": _cycle, "changed": _changed},
    Cycler: {"next": lambda env, cycler: cycler.next(), "reset": lambda env, cycler: cycler.reset()},
}

_LOOP = "index index0 revindex revindex0 first last length depth depth0 previtem nextitem".split()  # noqa: SIM905

PROPERTIES: dict[type, frozenset[str]] = {
    LoopContext: frozenset(_LOOP),
    Cycler: frozenset({"current"}),
    Macro: frozenset({"name", "arguments"}),
    _GroupTuple: frozenset({"grouper", "list"}),
}
