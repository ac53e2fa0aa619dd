"""The global functions of chat templates."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateRuntimeError
from jinja2.sandbox import safe_range
from jinja2.utils import Cycler, Joiner, Namespace


class Function:
    """A global function as a template holds it; :meth:`Guarded.call` runs it, the environment in front."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run


def _raise_exception(env: Any, message: Any = "") -> None:
    raise TemplateRuntimeError(env.text(message))


def _strftime_now(env: Any, pattern: str) -> str:
    if not isinstance(pattern, str) or len(pattern) > 256:
        raise ValueError("the format is no text of at most 256 characters")
    return datetime.now().strftime(pattern)


def _range(env: Any, *args: int) -> range:
    return safe_range(*args)  # refuses more than 100 000 items


def _dict(env: Any, *args: Any, **kwargs: Any) -> dict[Any, Any]:
    env.meter.memory(128 * len(kwargs))
    for arg in args:
        env.meter.memory(env.meter.weigh(arg))
    return dict(*args, **kwargs)


def _namespace(env: Any, *args: Any, **kwargs: Any) -> Namespace:
    return Namespace(_dict(env, *args, **kwargs))


def _cycler(env: Any, *items: Any) -> Cycler:
    return Cycler(*env.new_list(*items))


def _joiner(env: Any, sep: Any = ", ") -> Joiner:
    return Joiner(env.text(sep))


GLOBALS: dict[str, Function] = {
    "raise_exception": Function(_raise_exception),
    "strftime_now": Function(_strftime_now),
    "range": Function(_range),
    "dict": Function(_dict),
    "namespace": Function(_namespace),
    "cycler": Function(_cycler),
    "joiner": Function(_joiner),
}
