"""The filters of chat templates, each charged before it runs.

Those whose work is bounded by their input are Jinja's own behind a guard; those that can grow are written
here. Filters for web pages (``urlize``, ``xmlattr``, ``wordwrap``, ...) do not exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from jinja2 import pass_context
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context, Undefined
from jinja2.utils import _PassArg
from markupsafe import escape

from gristmill.templates.methods import METHODS, replaced
from gristmill.templates.operators import percent_format

_MAX_DIGITS = 4300  # of a number spelled in a text, Python's own limit
_MAX_PARTS = 10_000  # of batch and slice
_MAX_INDENT = 64


def _jinja(name: str, context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Run Jinja's filter ``name``."""
    run = JINJA_FILTERS[name]
    environment: Any = context.environment
    match _PassArg.from_obj(run):
        case _PassArg.context:
            return run(context, value, *args, **kwargs)
        case _PassArg.eval_context:
            return run(context.eval_ctx, value, *args, **kwargs)
        case _PassArg.environment:
            return run(environment, value, *args, **kwargs)
    return run(value, *args, **kwargs)


def _filter(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run(context, value, ...)`` with its arguments and its result charged; iterators come back metered."""

    @pass_context
    def guarded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        env: Any = context.environment
        env.meter.step()
        for arg in (*args, *kwargs.values()):
            env.comparable(arg)
        result = env.meter.result(run(context, value, *args, **kwargs))
        return _metered(env, result) if isinstance(result, Iterator) else result

    return guarded


def _metered(env: Any, items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        env.meter.step()
        yield env.meter.result(item)


def _of_text(name: str) -> Callable[..., Any]:
    """Jinja's filter on ``str(value)``, whose result is about as long."""

    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        env: Any = context.environment
        text = env.text(value)
        env.meter.memory(12 * len(text))
        if name == "trim":  # compares each character with all that are to be stripped
            env.meter.step(len(text) * sum(len(arg) for arg in args if isinstance(arg, str)) >> 12)
        return _jinja(name, context, text, *args, **kwargs)

    return run


def _of_items(name: str) -> Callable[..., Any]:
    """Jinja's filter on a list of all items, which it may compare and hash."""

    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        env: Any = context.environment
        items = env.collected(value)
        env.meter.step(len(items) * len(items).bit_length())
        env.meter.memory(64 * len(items))
        for _ in range(len(items).bit_length() if name == "sort" else 1):
            env.meter.weigh(items)
        return _jinja(name, context, items, *args, **kwargs)

    return run


def _dictsort(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
    env: Any = context.environment
    if type(value) is not dict:
        raise TypeError("dictsort expects a dict")
    env.meter.step(len(value) * len(value).bit_length())
    for _ in range(len(value).bit_length()):
        env.meter.weigh(value)
    return _jinja("dictsort", context, value, *args, **kwargs)


def _lazily(name: str) -> Callable[..., Any]:
    """Jinja's filter that yields from the items one by one."""

    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        env: Any = context.environment
        return _jinja(name, context, iter(env.iterate(value)), *args, **kwargs)

    return run


def _of_any(name: str) -> Callable[..., Any]:
    """Jinja's filter on something it looks at briefly."""

    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        return _jinja(name, context, value, *args, **kwargs)

    return run


def _center(context: Context, value: Any, width: int = 80) -> Any:
    env: Any = context.environment
    return METHODS[str]["center"](env, env.text(value), width)


def _replace(context: Context, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    env: Any = context.environment
    return replaced(env, env.text(value), env.text(old), env.text(new), -1 if count is None else count)


def _indent(context: Context, value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> Any:
    env: Any = context.environment
    text = env.text(value)
    size = len(width) if isinstance(width, str) else width
    env.meter.memory(4 * (len(text) + (len(text.splitlines()) + 1) * max(size, 0)))
    return _jinja("indent", context, text, width, first, blank)


def _format(context: Context, value: Any, *args: Any, **kwargs: Any) -> str:
    env: Any = context.environment
    return percent_format(env, env.text(value), kwargs or args)


def _join(context: Context, value: Any, d: Any = "", attribute: Any = None) -> str:
    env: Any = context.environment
    items = env.collected(value)
    if attribute is not None:
        items = list(map(make_attrgetter(env, attribute), items))
    separator: str = env.text(d)
    env.meter.memory(len(items) * 4 * len(separator))
    return separator.join([env.concat([env.text(item)]) for item in items])


def _list(context: Context, value: Any) -> Any:
    env: Any = context.environment
    return env.collected(value)


def _sum(context: Context, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    env: Any = context.environment
    items = env.collected(value)
    if attribute is not None:
        items = list(map(make_attrgetter(env, attribute), items))
    total = start
    for item in items:
        total = env.binary("+", total, item)
    return total


def _parts(name: str) -> Callable[..., Any]:
    def run(context: Context, value: Any, count: int, fill_with: Any = None) -> Any:
        if not isinstance(count, int) or not 1 <= count <= _MAX_PARTS:
            raise ValueError(f"{name} expects 1 to {_MAX_PARTS}")
        env: Any = context.environment
        items = env.collected(value)
        env.meter.step(count)
        env.meter.memory(8 * (len(items) + count))
        return _jinja(name, context, items, count, fill_with)

    return run


def _round(context: Context, value: Any, precision: int = 0, method: str = "common") -> Any:
    if not isinstance(precision, int) or abs(precision) > 100:
        raise ValueError("round expects a precision of -100 to 100")
    if not isinstance(value, int | float):
        raise TypeError("round expects a number")
    return _jinja("round", context, value, precision, method)


def _number(name: str) -> Callable[..., Any]:
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, str) and len(value) > _MAX_DIGITS:
            raise ValueError(f"a number of {len(value)} digits is too long")
        return _jinja(name, context, value, *args, **kwargs)

    return run


def _attr(context: Context, value: Any, name: str) -> Any:
    env: Any = context.environment
    return env.attribute(value, env.text(name))


def _escape(context: Context, value: Any) -> str:
    env: Any = context.environment
    text = env.text(value)
    env.meter.memory(6 * len(text))
    return str(escape(text))


def _string(context: Context, value: Any) -> str:
    env: Any = context.environment
    text: str = env.text(value)
    return text


def _length(context: Context, value: Any) -> int:
    if isinstance(value, Undefined):
        return 0
    return len(value)


def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Transformers writes it: nothing escaped for HTML, other scripts as they are, keys in order."""
    env: Any = context.environment
    width = len(indent) if isinstance(indent, str) else indent or 0
    if width > _MAX_INDENT or (separators and max(map(len, separators)) > _MAX_INDENT):
        raise ValueError("indentation or separators are too long")
    size = env.meter.weigh(value)
    # Every character of a string may become \u0000; every node may stand on a line of its own.
    env.meter.memory(6 * size)
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None:
        return encoder.encode(value)
    pieces: list[str] = []
    for piece in encoder.iterencode(value):
        env.meter.memory(len(piece) + 8)
        pieces.append(piece)
    return "".join(pieces)


def _safe(context: Context, value: Any) -> Any:
    return value


_RUN: dict[str, Callable[..., Any]] = {
    **{name: _of_text(name) for name in ("capitalize", "lower", "title", "trim", "truncate", "upper")},
    **{name: _of_items(name) for name in ("groupby", "max", "min", "sort", "unique")},
    **{name: _of_any(name) for name in ("abs", "default", "first", "items", "last", "reverse")},
    **{name: _lazily(name) for name in ("map", "reject", "rejectattr", "select", "selectattr")},
    **{name: _number(name) for name in ("float", "int")},
    **{name: _parts(name) for name in ("batch", "slice")},
    "attr": _attr,
    "center": _center,
    "dictsort": _dictsort,
    "escape": _escape,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "length": _length,
    "list": _list,
    "replace": _replace,
    "round": _round,
    "safe": _safe,
    "string": _string,
    "sum": _sum,
    "tojson": _tojson,
}
_RUN |= {"d": _RUN["default"], "e": _RUN["escape"], "count": _RUN["length"]}

FILTERS: dict[str, Callable[..., Any]] = {name: _filter(run) for name, run in _RUN.items()}
