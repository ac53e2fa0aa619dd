"""Binary operators whose results are bounded before they are computed."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from jinja2.runtime import Undefined

_MAX_BITS = 4096  # of an integer; no template counts further
_MAX_WIDTH = 1000  # of a formatted field
_FIELD = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?")
_NUMBERS = (int, float)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 64


def _refuse(symbol: str, left: Any, right: Any) -> TypeError:
    return TypeError(f"unsupported operands for {symbol}: {type(left).__name__} and {type(right).__name__}")


def _undefined(*operands: Any) -> None:
    for value in operands:
        if isinstance(value, Undefined):
            value._fail_with_undefined_error()


def _numeric(symbol: str, run: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    def apply(env: Any, left: Any, right: Any) -> Any:
        _undefined(left, right)
        if not (isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS)):
            raise _refuse(symbol, left, right)
        if _bits(left) + _bits(right) > _MAX_BITS:
            raise OverflowError(f"number too large for {symbol}")
        return run(left, right)

    return apply


def _add(env: Any, left: Any, right: Any) -> Any:
    _undefined(left, right)
    kind = type(left)
    if kind is type(right) and kind in (str, list, tuple):
        env.meter.memory(left.__sizeof__() + right.__sizeof__())
        return left + right
    return _numeric("+", operator.add)(env, left, right)


def _multiply(env: Any, left: Any, right: Any) -> Any:
    _undefined(left, right)
    for value, times in ((left, right), (right, left)):
        if type(value) in (str, list, tuple) and isinstance(times, int):
            env.meter.repeated(value, len(value) * times)
            return value * times
    return _numeric("*", operator.mul)(env, left, right)


def _power(env: Any, left: Any, right: Any) -> Any:
    _undefined(left, right)
    if isinstance(left, int) and isinstance(right, int) and _bits(left) * abs(right) > _MAX_BITS:
        raise OverflowError("number too large for **")
    return _numeric("**", operator.pow)(env, left, right)


def _modulo(env: Any, left: Any, right: Any) -> Any:
    _undefined(left)
    if type(left) is not str:
        return _numeric("%", operator.mod)(env, left, right)
    return percent_format(env, left, right)


def percent_format(env: Any, pattern: str, values: Any) -> str:
    """``pattern % values`` with bounded widths. Raises ValueError for wider ones."""
    fields = 0
    for match in _FIELD.finditer(pattern):
        fields += 1
        for width in match.groups():
            if width and (width == "*" or len(width) > 4 or int(width) > _MAX_WIDTH):
                raise ValueError(f"field width {width[:20]} is too large")
    size = env.meter.weigh(values)
    # A mapping's value may be printed by every field, with all its characters escaped.
    env.meter.memory(4 * len(pattern) + fields * (4 * size + _MAX_WIDTH))
    text: str = pattern % values
    return text


OPERATORS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "+": _add,
    "-": _numeric("-", operator.sub),
    "*": _multiply,
    "/": _numeric("/", operator.truediv),
    "//": _numeric("//", operator.floordiv),
    "%": _modulo,
    "**": _power,
}
