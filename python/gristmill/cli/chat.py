"""The chat of ``gristmill run``: the conversation, its commands, and reading lines."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gristmill.cli import output
from gristmill.cli.transcript import report, show_prompt
from gristmill.cli.turn import Answer, Speaker
from gristmill.errors import ContextFullError, Error

if TYPE_CHECKING:
    from gristmill.chat import ChatTemplate

HELP = """\
/bye      end (or Ctrl-D)
/clear    forget the conversation
/help     this list
Ctrl-C    stop the answer
\"\"\"       begins and ends a message of several lines"""

_COMMAND = re.compile(r"/[a-z?]+")
_QUOTES = '"""'

Ask = Callable[[str], str]
"""Shows a prompt and returns a line; raises EOFError at the end and KeyboardInterrupt on Ctrl-C."""


class Chat:
    """A conversation with a model. Its history holds no thinking, as QwQ and its kin ask."""

    def __init__(
        self, args: argparse.Namespace, speaker: Speaker, template: ChatTemplate, system: str | None
    ) -> None:
        self._args = args
        self._speaker = speaker
        self._template = template
        self._system = system
        self.messages: list[dict[str, str]] = []
        self._in_loop = False
        self.clear()

    def clear(self) -> None:
        """Begins anew."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def turn(self, text: str) -> Answer:
        """Says ``text``, streams the answer, and adds both to the history.

        When the answer fails, the history is as before and the error is raised.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            answer, said = self._answer()
        except BaseException:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": said.strip("\n")})
        return answer

    def _answer(self) -> tuple[Answer, str]:
        """The answer to the messages, and it without thinking."""
        from gristmill.reasoning import OPEN, opens_reasoning, strip_reasoning

        rendered = self._template.render(
            self.messages, add_generation_prompt=True, **self._template_arguments()
        )
        tokenizer = self._speaker.model.tokenizer
        bos = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
        written = bool(bos) and rendered.startswith(bos)  # by the template, so there is none to add
        ids = tokenizer.encode(rendered, add_special=not written, parse_special=True)
        show_prompt(self._args, self._speaker, rendered, ids)
        split = self._args.reasoning_format != "none"
        writer = output.AnswerWriter(
            sys.stdout,
            None if self._args.quiet else sys.stderr,
            color=self._args.color,
            end_line=self._in_loop,  # answers follow each other
        )
        answer = self._speaker.answer(ids, writer, split_reasoning=split)
        if split:
            return answer, answer.text
        return answer, strip_reasoning(OPEN * opens_reasoning(rendered) + answer.text)

    def _template_arguments(self) -> dict[str, Any]:
        arguments = dict(self._args.chat_template_kwargs)
        # QwQ's template closes the thinking that it opened unless this is said; templates without the switch
        # ignore it.
        arguments.setdefault("enable_thinking", self._args.reasoning != "off")
        return arguments

    def loop(self, first: str | None = None) -> int:
        """Chats until the input ends; ``first`` is said before anything is read. Returns the exit status."""

        self._in_loop = True
        terminal = sys.stdin.isatty()
        if terminal and not self._args.quiet:
            output.note("[chat: /help lists the commands, Ctrl-D ends]")
        ask = _terminal_reader() if terminal and not self._args.simple_io else _plain_reader(terminal)
        while True:
            text = first if first is not None else _read(ask)
            first = None
            if text is None or text == "/bye":
                return 0
            if _COMMAND.fullmatch(text):
                self._command(text)
                continue
            if not text.strip():
                continue
            try:
                answer = self.turn(text)
            except ContextFullError as error:
                output.tell("error", f"{error} (/clear forgets the conversation, --ctx-size gives more room)")
            except Error as error:
                output.tell("error", str(error))
            except KeyboardInterrupt:
                output.note("[stopped]")  # before the first token, or after the last one
            else:
                report(self._args, self._speaker, answer)
                if answer.finish_reason == "context_full":
                    output.note("[/clear forgets the conversation and makes room]")
            if self._args.single_turn:
                return 0

    def _command(self, text: str) -> None:
        if text == "/clear":
            self.clear()
            output.note("[the conversation is forgotten]")
        elif text in {"/help", "/?"}:
            output.note(HELP)
        else:
            output.note(f"[unknown command {text}; /help lists them]")


def _read(ask: Ask) -> str | None:
    """One message, which may be several lines between triple quotes; None at the end of the input."""
    try:
        line = ask(">>> ")
        if not line.lstrip().startswith(_QUOTES):
            return line.strip() if _COMMAND.fullmatch(line.strip()) else line
        lines = [line.lstrip().removeprefix(_QUOTES)]
        while not lines[-1].rstrip().endswith(_QUOTES):
            lines.append(ask("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
        return "\n".join(lines).strip("\n")
    except EOFError:
        return None
    except KeyboardInterrupt:
        output.note("[Ctrl-D or /bye ends]")
        return ""


def _plain_reader(terminal: bool) -> Ask:
    """Lines of standard input, with a prompt only on a terminal."""

    def ask(prompt: str) -> str:
        if terminal:
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")

    return ask


def _terminal_reader() -> Ask:
    """Line editing, with a history that is kept in the user's state directory."""
    from platformdirs import user_state_path
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.output import create_output

    history: History
    try:
        directory = user_state_path("gristmill")
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = directory / "chat_history"
        path.touch(mode=0o600)
        history = FileHistory(str(path))
    except OSError as error:
        output.tell("warning", f"{output.describe_os_error(error)}: the history of lines is not kept")
        history = InMemoryHistory()
    # With standard output redirected the prompt still belongs on the terminal, which is then standard error.
    session: PromptSession[str] = PromptSession(
        history=history, output=create_output(always_prefer_tty=True), enable_open_in_editor=False
    )
    return session.prompt
