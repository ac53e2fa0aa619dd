"""The environment a chat template is compiled and rendered in: what it may name and what each thing costs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Joiner, Namespace

from gristmill.templates.filters import FILTERS
from gristmill.templates.functions import GLOBALS, Function
from gristmill.templates.meter import Limits, Meter
from gristmill.templates.methods import METHODS, PROPERTIES, Method
from gristmill.templates.operators import OPERATORS
from gristmill.templates.rewrite import GenerationTag, GuardedCode, Guards
from gristmill.templates.tests import TESTS

_MISSING = object()


class Metered:
    """An iterable that charges a step for each item."""

    __slots__ = ("_meter", "_source")

    def __init__(self, source: Iterable[Any], meter: Meter) -> None:
        self._source = source
        self._meter = meter

    def __iter__(self) -> Iterator[Any]:
        step = self._meter.step
        for item in self._source:
            step()
            yield item

    def __len__(self) -> int:
        return len(self._source)  # type: ignore[arg-type] # LoopContext expects the TypeError


class Guarded(ImmutableSandboxedEnvironment):
    """Serves one rendering (or compilation), so that its meter is its own. Settings are those that chat
    templates are written for: blocks swallow the line they stand on.
    """

    code_generator_class = GuardedCode
    intercepted_binops = frozenset(OPERATORS)

    def __init__(self, limits: Limits) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants are computed under the meter too
            finalize=_printed,
            extensions=[loopcontrols, GenerationTag],
            autoescape=False,
            cache_size=0,
        )
        self.meter = Meter(limits)
        self.globals = dict(GLOBALS)
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        guarded = Guards(self.meter.limits.nodes).visit(source)
        guarded.set_environment(self)
        return super()._generate(guarded, name, filename, defer_init)

    # Guards that the compiled template calls ----------------------------------------------------------------

    def iterate(self, value: Any) -> Any:
        """What a loop runs over."""
        self.meter.step()
        return value if isinstance(value, Undefined) else Metered(value, self.meter)

    def comparable(self, value: Any) -> Any:
        """An operand of a comparison, or a key: containers are compared as trees, however much they share."""
        kind = type(value)
        if kind is str:
            self.meter.text(len(value))
        elif kind is list or kind is tuple or kind is dict:
            self.meter.weigh(value)
        else:
            self.meter.step()
        return value

    def text(self, value: Any) -> str:
        """``str(value)`` for what has a text; TypeError for functions, generators and the like."""
        kind = type(value)
        if kind is str:
            self.meter.text(len(value))
            return str(value)
        if isinstance(value, Undefined) and value._undefined_exception is SecurityError:
            raise_undefined(value)
        size = self.meter.weigh(value)
        self.meter.memory(4 * size)  # \U0001F600 for a character of four bytes
        return str(value)

    def joined(self, *values: Any) -> str:
        return self.concat([self.text(value) for value in values])

    def concat(self, parts: Iterable[str]) -> str:
        """``"".join`` of a buffer: set blocks, macros, filter blocks."""
        parts = list(parts)
        self.meter.step(len(parts) >> 4)
        self.meter.memory(sum(map(sys.getsizeof, parts)))
        return "".join(parts)

    def new_list(self, *items: Any) -> list[Any]:
        self.meter.memory(64 + 8 * len(items))
        return list(items)

    def new_tuple(self, *items: Any) -> tuple[Any, ...]:
        self.meter.memory(64 + 8 * len(items))
        return items

    def new_dict(self, *parts: Any) -> dict[Any, Any]:
        self.meter.memory(128 + 64 * len(parts))
        return {self.comparable(key): value for key, value in zip(parts[::2], parts[1::2], strict=True)}

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        if type(value) in (str, list, tuple):
            # A slice is no longer than the whole, and wide characters elsewhere may make it wider per item.
            self.meter.memory(sys.getsizeof(value))
        elif not isinstance(value, Undefined | range):
            raise TypeError(f"a {type(value).__name__} cannot be sliced")
        return value[start:stop:step]

    def collected(self, value: Any) -> list[Any]:
        """All items of an iterable as a new list."""
        items: list[Any] = []
        source = iter(self.iterate(value))
        while chunk := list(islice(source, 1024)):
            self.meter.memory(8 * len(chunk) + 64)
            items += chunk
        return items

    # Jinja's hooks ------------------------------------------------------------------------------------------

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``obj.attribute``: a listed method or property, or else the item of that name."""
        self.meter.step()
        if isinstance(obj, Undefined):
            raise_undefined(obj)
        member = self._member(obj, attribute)
        if member is not _MISSING:
            return member
        if type(obj) is dict and attribute in obj:
            return obj[attribute]
        return self.undefined(obj=obj, name=attribute)

    def attribute(self, obj: Any, name: str) -> Any:
        """``obj|attr(name)``: the listed method or property only."""
        member = self._member(obj, name)
        return self.undefined(obj=obj, name=name) if member is _MISSING else member

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``: the item, or else the listed method or property of that name."""
        self.comparable(argument)
        if isinstance(obj, Undefined):
            raise_undefined(obj)
        if isinstance(obj, str | list | tuple | dict | range):
            try:
                return obj[argument]
            except (TypeError, LookupError):
                pass
        if isinstance(argument, str):
            member = self._member(obj, argument)
            if member is not _MISSING:
                return member
        return self.undefined(obj=obj, name=argument)

    def _member(self, obj: Any, name: str) -> Any:
        """The method or property ``name``, or an undefined that says so for one that is not for templates;
        ``_MISSING`` where ``obj`` has no such thing."""
        kind = type(obj)
        if name in METHODS.get(kind, ()):
            return Method(obj, name)
        if name in PROPERTIES.get(kind, ()):
            return getattr(obj, name)
        if kind is Namespace and not name.startswith("_"):
            return getattr(obj, name, _MISSING)
        if hasattr(kind, name):
            return self.unsafe_undefined(obj, name)
        return _MISSING

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template may call; SecurityError for anything else."""
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        self.meter.step()
        if type(obj) is Method:
            run = METHODS[type(obj.receiver)][obj.name]
            return self.meter.result(run(self, obj.receiver, *args, **kwargs))
        if type(obj) is Function:
            return self.meter.result(obj.run(self, *args, **kwargs))
        if isinstance(obj, Macro):
            return self._deeper(context.call, obj, *args, **kwargs)
        if type(obj) is LoopContext and len(args) == 1:
            return self._deeper(obj, self.iterate(args[0]))
        if type(obj) is Joiner:
            return obj()
        if isinstance(obj, Undefined):
            raise_undefined(obj)
        raise SecurityError(f"a {type(obj).__name__} cannot be called")

    def _deeper(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        meter = self.meter
        if meter.depth >= meter.limits.depth:
            raise RecursionError
        meter.depth += 1
        try:
            return run(*args, **kwargs)
        finally:
            meter.depth -= 1

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return self.binary(operator, left, right)

    def binary(self, operator: str, left: Any, right: Any) -> Any:
        """``left operator right`` where the result is bounded."""
        self.meter.step()
        return OPERATORS[operator](self, left, right)


def raise_undefined(value: Undefined) -> None:
    value._fail_with_undefined_error()


@pass_context
def _printed(context: Context, value: Any) -> str:
    """What ``{{ value }}`` prints."""
    environment: Any = context.environment
    text: str = environment.text(value)
    return text
