"""The chat: its history, its commands, and how it behaves on a real terminal."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import cli_fake
import pexpect
import pytest
from gristmill.cli import main

FAKE = str(Path(cli_fake.__file__))
_TERMINAL_COMMANDS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][0-9A-B]?|\r")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[cli_fake.FakeModel]:
    from gristmill.cli import run

    monkeypatch.setattr(run, "_load", run._load)
    monkeypatch.setattr(run, "_sampler", run._sampler)
    return cli_fake.install()


def chat(monkeypatch: pytest.MonkeyPatch, lines: str, *flags: str) -> int:
    """A chat whose lines come from a pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    return main(["run", "-m", "x", "-cnv", *flags])


def test_lines_from_a_pipe(
    loaded: list[cli_fake.FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, "one\n\ntwo\r\n", "-sys", "s") == 0
    first = "[system:s][user:one][assistant:"
    answer = f"you said 'one' in {len(first)} characters"
    second = f"[system:s][user:one][assistant:{answer}][user:two][assistant:"
    assert loaded[0].prompts == [first, second]
    out, err = capsys.readouterr()
    assert out == f"{answer}\nyou said 'two' in {len(second)} characters\n"
    assert err.count("tok/s") == 4  # prefill and decode of two answers


def test_what_was_processed_is_reused(
    loaded: list[cli_fake.FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat(monkeypatch, "one\ntwo\n")
    first, second = capsys.readouterr().err.splitlines()
    assert "reused" not in first
    # All of the first prompt and of the answer to it.
    n = len("[user:one][assistant:") + len("you said 'one' in 21 characters")
    assert f"({n} reused)" in second
    assert len({id(options["session"]) for options in loaded[0].options}) == 1


def test_history_has_no_thinking(loaded: list[cli_fake.FakeModel], monkeypatch: pytest.MonkeyPatch) -> None:
    chat(monkeypatch, "think\nnext\n")
    assert loaded[0].prompts[1] == "[user:think][assistant:thought about think][user:next][assistant:"


def test_history_has_no_thinking_that_was_shown_raw_either(
    loaded: list[cli_fake.FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat(monkeypatch, "think\nnext\n", "--reasoning-format", "none")
    assert capsys.readouterr().out.startswith("<think>hm</think>\n\nthought about think\n")
    assert loaded[0].prompts[1] == "[user:think][assistant:thought about think][user:next][assistant:"


def test_clear(
    loaded: list[cli_fake.FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat(monkeypatch, "one\n /clear \ntwo\n", "-sys", "s")
    assert loaded[0].prompts[1] == "[system:s][user:two][assistant:"
    assert "[the conversation is forgotten]" in capsys.readouterr().err


def test_bye_help_and_what_is_no_command(
    loaded: list[cli_fake.FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, "/help\n/nonsense\n/usr/bin is what?\n/bye\nnever\n") == 0
    assert loaded[0].prompts == ["[user:/usr/bin is what?][assistant:"]
    err = capsys.readouterr().err
    assert "/clear    forget the conversation" in err
    assert "[unknown command /nonsense; /help lists them]" in err


@pytest.mark.parametrize(
    "lines",
    ['"""one\ntwo"""\n', '"""\none\ntwo\n"""\n', '  """one\ntwo"""  \n'],
    ids=["tight", "loose", "spaced"],
)
def test_several_lines(loaded: list[cli_fake.FakeModel], monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    chat(monkeypatch, lines)
    assert loaded[0].prompts == ["[user:one\ntwo][assistant:"]


def test_several_lines_that_begin_and_end_in_one(
    loaded: list[cli_fake.FakeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat(monkeypatch, '"""one"""\n"""')
    assert loaded[0].prompts == ["[user:one][assistant:"]


def test_a_failed_answer_leaves_the_history_as_it_was(
    loaded: list[cli_fake.FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, "fail\nfine\n") == 0
    assert loaded[0].prompts[1] == "[user:fine][assistant:"
    assert "gristmill: error: the logits are not finite\n" in capsys.readouterr().err


def test_full_context(
    loaded: list[cli_fake.FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, "one\ntwo\n/clear\ntwo\n", "-c", "30", "--no-perf") == 0
    assert capsys.readouterr().err.splitlines() == [
        "[the context of 30 tokens is full; --ctx-size gives more]",
        "[/clear forgets the conversation and makes room]",
        "gristmill: error: the prompt has 52 tokens, but the context holds 30 "
        "(/clear forgets the conversation, --ctx-size gives more room)",
        "[the conversation is forgotten]",
        "[the context of 30 tokens is full; --ctx-size gives more]",
        "[/clear forgets the conversation and makes room]",
    ]


def test_single_turn(loaded: list[cli_fake.FakeModel], monkeypatch: pytest.MonkeyPatch) -> None:
    assert chat(monkeypatch, "one\ntwo\n", "-st") == 0
    assert len(loaded[0].prompts) == 1


# On a terminal -------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(tmp_path: Path) -> pexpect.spawn[str]:
    return start(tmp_path)


def start(home: Path, *flags: str) -> pexpect.spawn[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG_") and k != "NO_COLOR"}
    environment |= {
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "TERM": "xterm",
        "COLUMNS": "80",
    }
    child = pexpect.spawn(
        sys.executable, [FAKE, "run", "-m", "x", *flags], env=environment, encoding="utf-8", timeout=10
    )
    # Sent before the line editor is there, keys would be echoed and handled by the terminal itself.
    child.expect(">>>")
    return child


def plain(text: str | None) -> str:
    return _TERMINAL_COMMANDS.sub("", text or "")


def test_terminal_answers_and_ends_with_bye(terminal: pexpect.spawn[str]) -> None:
    terminal.send("hello\r")
    terminal.expect("you said 'hello' in 23 characters")
    terminal.expect("tok/s")
    terminal.expect(">>>")
    terminal.send("/bye\r")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_terminal_ctrl_c_stops_the_answer_and_not_the_program(terminal: pexpect.spawn[str]) -> None:
    terminal.send("slowly\r")
    terminal.expect("word word")
    terminal.sendintr()
    terminal.expect("tok/s")
    terminal.expect(">>>")
    assert plain(terminal.before).count("word") < 900
    terminal.send("again\r")
    terminal.expect("you said 'again'")
    terminal.expect(">>>")
    terminal.sendintr()  # at the prompt it clears the line
    terminal.expect("Ctrl-D or /bye ends")
    terminal.expect(">>>")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    assert "Traceback" not in plain(terminal.before)


def test_terminal_thinking_is_dimmed(terminal: pexpect.spawn[str]) -> None:
    terminal.send("think\r")
    terminal.expect("thought about think")
    assert "\x1b[2mh\x1b[0m\x1b[2mm\x1b[0m" in (terminal.before or "")


def test_terminal_lines_can_be_edited_and_are_remembered(tmp_path: Path) -> None:
    first = start(tmp_path)
    first.send("hexlo\x1b[D\x1b[D\x1b[D\x1b[3~l\r")  # three to the left, delete, type
    first.expect("you said 'hello'")
    first.expect(">>>")
    first.sendeof()
    first.expect(pexpect.EOF)
    history = tmp_path / "state" / "gristmill" / "chat_history"
    assert "+hello" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0  # what was said is nobody else's business
    second = start(tmp_path)
    second.send("\x1b[A\r")  # the line before
    second.expect("you said 'hello'")
    second.sendeof()


def test_terminal_without_a_place_for_history(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    child = start(tmp_path)
    assert "the history of lines is not kept" in plain(child.before)
    child.send("hello\r")
    child.expect("you said 'hello'")


def test_terminal_simple_io(tmp_path: Path) -> None:
    child = start(tmp_path, "--simple-io")
    child.sendline("hello")
    child.expect("you said 'hello'")
    child.expect(">>>")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_terminal_first_turn_from_the_command_line(tmp_path: Path) -> None:
    child = start(tmp_path, "-cnv", "-p", "hello")
    assert "you said 'hello'" in plain(child.before)


def test_terminal_answer_cannot_send_commands(tmp_path: Path) -> None:
    child = start(tmp_path, "--simple-io")
    child.sendline('"""\x16\x1b]0;title\x16\x07"""')
    child.expect("you said .*characters")
    assert "\x1b]0;" not in child.after.partition("you said")[2]
