"""An ``argparse`` parser with llama.cpp's rules for flags.

What differs from plain ``argparse``: a flag is matched whole (``-prompt`` is an error, not ``-p rompt``),
``_`` in a long flag counts as ``-``, a flag's value may begin with a dash, flags have environment variables,
and every mistake is one ``UsageError`` that names the nearest flag.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

_NUMBER = re.compile(r"-\.?\d")
_TRUE = frozenset({"on", "enabled", "true", "1"})
_FALSE = frozenset({"off", "disabled", "false", "0"})


class UsageError(Exception):
    """The command line is wrong; ``str(error)`` is the one line to show (exit status 2)."""


class NoEffect(argparse.Action):
    """A flag that is taken so that published commands run, and that reports that it does nothing, and why.

    ``harmless`` holds the values that ask for what happens anyway; a ``satisfied`` flag asks for it in
    itself.
    """

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        *,
        reason: str,
        harmless: frozenset[str] = frozenset(),
        satisfied: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, **kwargs)
        self.reason = reason
        self.harmless = harmless
        self.satisfied = satisfied

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if self.satisfied or (isinstance(values, str) and values in self.harmless):
            return
        add_warning(namespace, f"{option_string} has no effect: {self.reason}")


class Refused(argparse.Action):
    """A flag of llama.cpp that would change the answer and is not built in: refused by name."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, reason: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, **kwargs)
        self.reason = reason

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        raise UsageError(f"{option_string} is not supported: {self.reason}")


def add_warning(namespace: argparse.Namespace, text: str) -> None:
    """Keeps a warning about the command line until output is set up (``--quiet`` does not hide warnings)."""
    namespace.warnings = [*getattr(namespace, "warnings", []), text]


class Parser(argparse.ArgumentParser):
    """See the module. ``environment`` maps a long flag to the variable that stands for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self.environment: dict[str, str] = {}

    @property
    def flags(self) -> Mapping[str, argparse.Action]:
        """Every spelling of every flag; argparse itself looks them up in this mapping."""
        return self._option_string_actions

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see '{self.prog} --help')")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        given = [*self._from_environment(os.environ), *self._normalize(args or [])]
        return super().parse_known_args(given, namespace)

    def _normalize(self, args: Sequence[str]) -> list[str]:
        """Rewrites each ``FLAG VALUE`` as one ``FLAG=VALUE``, after checking that the flag exists."""
        out: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word == "--":
                return [*out, word, *rest]
            if len(word) < 2 or word[0] != "-" or (_NUMBER.match(word) and word not in self.flags):
                out.append(word)
                if self._subparsers is not None:
                    return [*out, *rest]  # the rest belongs to the command and is checked there
                continue
            name, equals, value = word.partition("=")
            name = name.replace("_", "-") if name.startswith("--") else name
            action = self.flags.get(name)
            if action is None:
                self.error(f"unknown flag {name}{self._nearest(name)}")
            if equals:
                if action.nargs == 0:
                    self.error(f"{name} takes no value")
                out.append(f"{name}={value}")
            elif action.nargs == 0:
                out.append(name)
            elif action.nargs == "?":  # the value is optional: only a word that can be one is taken as it
                takes = bool(rest) and action.choices is not None and rest[0] in action.choices
                out.append(f"{name}={rest.pop(0)}" if takes else name)
            elif rest:
                out.append(f"{name}={rest.pop(0)}")
            else:
                self.error(f"{name} needs a value")
        return out

    def _nearest(self, name: str) -> str:
        near = difflib.get_close_matches(name, list(self.flags), n=1, cutoff=0.6)
        if not near and not name.startswith("--"):
            near = [flag for flag in (f"-{name}",) if flag in self.flags]
        return f", did you mean {near[0]}?" if near else ""

    def _from_environment(self, environ: Mapping[str, str]) -> list[str]:
        """The flags that environment variables stand for; they come first, so that flags given win."""
        words: list[str] = []
        for flag, variable in self.environment.items():
            value = environ.get(variable, "")
            if not value:
                continue
            if self.flags[flag].nargs != 0:
                words.append(f"{flag}={value}")
            elif value in _TRUE:
                words.append(flag)
            elif value not in _FALSE:
                self.error(f"environment variable {variable}: expected on or off, got {value!r}")
        return words
