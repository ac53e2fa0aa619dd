"""Chat templates: messages to the text a model was trained on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any

from gristmill.errors import ArgumentError, GGUFError, TemplateError
from gristmill.gguf import GGUFFile
from gristmill.messages import printable
from gristmill.reasoning import ReasoningSplitter, opens_reasoning, strip_reasoning

if TYPE_CHECKING:
    from gristmill.templates.meter import Limits

__all__ = ["ChatTemplate", "ReasoningSplitter", "opens_reasoning", "strip_reasoning"]

_FILENAME = "<chat template>"  # of the compiled code, by which its frames are found
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_MAX_MESSAGE = 500  # characters of an error


class ChatTemplate:
    """A Jinja template that renders as Transformers' ``apply_chat_template`` does, in a sandbox with limits.

    The template sees ``messages``, ``tools``, ``documents``, ``add_generation_prompt``, the two token texts
    and what ``render`` is given by keyword; it reaches nothing else. Raises TemplateError, one line with the
    template's line number, for a source that is no template. Safe to use from several threads.
    """

    KEYS: tuple[str, ...] = ("tokenizer.chat_template",)  # the metadata key that from_gguf reads itself

    def __init__(
        self, source: str, bos_token: str = "", eos_token: str = "", limits: Limits | None = None
    ) -> None:
        from gristmill.templates.meter import Limits

        if not isinstance(source, str):
            raise ArgumentError(f"chat template: expected str, got {type(source).__name__}")
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._limits = limits or Limits()
        self._code = self._compile()

    @classmethod
    def from_gguf(
        cls, source: str | os.PathLike[str] | GGUFFile, overrides: Mapping[str, object] | None = None
    ) -> ChatTemplate:
        """The template in a GGUF file, given as its path or open; ``overrides`` replaces metadata.

        Raises GGUFError for a file without a template, TemplateError for one whose template is malformed.
        """
        if isinstance(source, GGUFFile):
            metadata = source.metadata
        else:
            with GGUFFile.open(source, check_extents=False) as file:
                metadata = file.metadata
        if overrides:
            metadata = metadata.with_overrides(overrides)
        template = metadata.get_str("tokenizer.chat_template", "")
        if not template:
            raise GGUFError(f"{printable(str(metadata.path))}: the file has no chat template")
        texts = metadata.get_array("tokenizer.ggml.tokens", str, [])
        tokens: list[str] = []
        for name in ("bos", "eos"):
            token = metadata.get_int(f"tokenizer.ggml.{name}_token_id", None)
            tokens.append(texts[token] if token is not None and 0 <= token < len(texts) else "")
        return cls(template, bos_token=tokens[0], eos_token=tokens[1])

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt for ``messages``, each a mapping with "role" and "content".

        ``add_generation_prompt`` appends what opens the model's answer. Further keywords, such as
        ``enable_thinking``, become variables; one that is not given is undefined, which is false.

        Raises TemplateError where the template fails, raises an exception of its own or exceeds a limit;
        ArgumentError for messages that are not plain data.
        """
        from jinja2 import Template

        from gristmill.templates.environment import Guarded

        variables = self._variables(messages, tools, add_generation_prompt, kwargs)
        env = Guarded(self._limits)
        env.meter.grant(16 * _weight(variables))
        try:
            template = Template.from_code(env, self._code, env.globals)
            context = template.new_context(variables)
            pieces: list[str] = []
            length = 0
            for piece in template.root_render_func(context):
                pieces.append(piece)
                length += len(piece)
                if length > self._limits.output:
                    raise TemplateError(f"chat template: the output exceeds {self._limits.output} characters")
            return "".join(pieces)
        except Exception as error:
            raise _template_error(error, template.get_corresponding_lineno) from None

    def _compile(self) -> CodeType:
        from gristmill.templates.environment import Guarded

        if len(self.source) > self._limits.source:
            raise TemplateError(
                f"chat template: {len(self.source)} characters, the limit is {self._limits.source}"
            )
        try:
            return Guarded(self._limits).compile(self.source, filename=_FILENAME)
        except Exception as error:
            raise _template_error(error) from None

    def _variables(
        self, messages: Any, tools: Any, add_generation_prompt: bool, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        from gristmill.templates.meter import plain

        if not isinstance(messages, Sequence) or not all(isinstance(item, Mapping) for item in messages):
            raise ArgumentError("messages: expected a list of mappings with 'role' and 'content'")
        if tools is not None and (isinstance(tools, str) or not isinstance(tools, Sequence)):
            raise ArgumentError("tools: expected a list of JSON schemas")
        try:
            variables = {
                "messages": [_with_reasoning(item) for item in plain(messages, "messages")],
                "tools": plain(tools, "tools"),
                "documents": None,
                "add_generation_prompt": bool(add_generation_prompt),
                "bos_token": self.bos_token,
                "eos_token": self.eos_token,
            }
            return variables | {name: plain(value, name) for name, value in kwargs.items()}
        except (TypeError, ValueError) as error:
            raise ArgumentError(printable(str(error), _MAX_MESSAGE)) from None


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """``message`` with its reasoning under the names that templates look for, as Transformers adds them."""
    reasoning = next((message[key] for key in _REASONING_KEYS if message.get(key) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _weight(value: Any) -> int:
    """Rough bytes of plain data."""
    total, pending = 0, [value]
    while pending:
        item = pending.pop()
        total += 16
        if isinstance(item, str):
            total += 4 * len(item)
        elif isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return total


def _template_error(error: Exception, template_line: Any = None) -> TemplateError:
    """``error`` as one line with the template's line number."""
    from jinja2.exceptions import TemplateSyntaxError

    from gristmill.templates.meter import LimitExceeded

    if isinstance(error, TemplateError):
        return error
    line: int | None = None
    if isinstance(error, TemplateSyntaxError):
        line = error.lineno
    elif template_line is not None:
        at = _last_line(error.__traceback__)
        line = template_line(at) if at is not None else None
    if isinstance(error, LimitExceeded):
        what = f"exceeds {error}"
    elif isinstance(error, RecursionError):
        what = "is nested too deeply"
    elif isinstance(error, MemoryError):
        what = "ran out of memory"
    else:
        text = error.message if isinstance(error, TemplateSyntaxError) else str(error)
        what = printable(text or type(error).__name__, _MAX_MESSAGE)
    where = f"chat template, line {line}" if line else "chat template"
    return TemplateError(f"{where}: {what}")


def _last_line(trace: TracebackType | None) -> int | None:
    found = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILENAME:
            found = trace.tb_lineno
        trace = trace.tb_next
    return found
