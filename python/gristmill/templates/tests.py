"""The tests (``is ...``) of chat templates: Jinja's, behind guards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import pass_context
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import Joiner

from gristmill.templates.functions import Function
from gristmill.templates.methods import Method

# Looking at a type or at being the same object.
_CONSTANT = """
boolean defined false float integer iterable mapping none number sameas sequence string true undefined escaped
""".split()  # noqa: SIM905
_COMPARING = "!= < <= == > >= eq equalto ge greaterthan gt in le lessthan lt ne".split()  # noqa: SIM905


def _guarded(run: Any, *, compares: bool) -> Callable[..., bool]:
    @pass_context
    def test(context: Context, value: Any, *args: Any) -> bool:
        environment: Any = context.environment
        environment.meter.step()
        if compares:
            for operand in (value, *args):
                environment.comparable(operand)
        return bool(run(value, *args))

    return test


@pass_context
def _is_lower(context: Context, value: Any) -> bool:
    environment: Any = context.environment
    return bool(environment.text(value).islower())


@pass_context
def _is_upper(context: Context, value: Any) -> bool:
    environment: Any = context.environment
    return bool(environment.text(value).isupper())


@pass_context
def _is_filter(context: Context, value: str) -> bool:
    return value in context.environment.filters


@pass_context
def _is_test(context: Context, value: str) -> bool:
    return value in context.environment.tests


def _remainder(context: Context, value: Any, divisor: Any) -> Any:
    if not (isinstance(value, int | float) and isinstance(divisor, int | float)):
        raise TypeError("expected a number")  # % would format a text
    environment: Any = context.environment
    return environment.binary("%", value, divisor)


@pass_context
def _is_odd(context: Context, value: Any) -> bool:
    return bool(_remainder(context, value, 2) == 1)


@pass_context
def _is_even(context: Context, value: Any) -> bool:
    return bool(_remainder(context, value, 2) == 0)


@pass_context
def _is_divisible(context: Context, value: Any, divisor: Any) -> bool:
    return bool(_remainder(context, value, divisor) == 0)


@pass_context
def _is_callable(context: Context, value: Any) -> bool:
    return isinstance(value, Method | Function | Macro | LoopContext | Joiner)


TESTS: dict[str, Callable[..., bool]] = {
    **{name: _guarded(JINJA_TESTS[name], compares=False) for name in _CONSTANT},
    **{name: _guarded(JINJA_TESTS[name], compares=True) for name in _COMPARING},
    "lower": _is_lower,
    "upper": _is_upper,
    "filter": _is_filter,
    "test": _is_test,
    "odd": _is_odd,
    "even": _is_even,
    "divisibleby": _is_divisible,
    "callable": _is_callable,
}
