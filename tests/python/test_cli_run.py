"""``gristmill run`` on a fake engine: which text goes where, exit statuses, one-line errors, signals."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cli_fake
import pytest
from gristmill.cli import main

FAKE = str(Path(cli_fake.__file__))
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG_")}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[cli_fake.FakeModel]:
    from gristmill.cli import run

    monkeypatch.setattr(run, "_load", run._load)
    monkeypatch.setattr(run, "_sampler", run._sampler)
    return cli_fake.install()


def gristmill(*args: str, fake: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own, standard input closed unless ``input`` says otherwise."""
    program = [sys.executable, FAKE] if fake else [sys.executable, "-m", "gristmill"]
    settings = {"stdin": subprocess.DEVNULL} if "input" not in options else {}
    return subprocess.run(
        [*program, *args], capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT,
        **(settings | options),  # type: ignore[call-overload]
    )  # fmt: skip


def test_one_turn_of_chat(loaded: list[cli_fake.FakeModel], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", "x", "-p", "hi", "-sys", "be brief"]) == 0
    out, err = capsys.readouterr()
    assert loaded[0].prompts == ["[system:be brief][user:hi][assistant:"]
    assert out == "you said 'hi' in 37 characters"
    assert re.fullmatch(
        r"\[prompt 37 tokens, 74\.0 tok/s · answer 30 tokens, [\d.]+ tok/s · first token after 0\.50 s\]\n",
        err,
    )


def test_completion_passes_the_prompt_as_it_is(
    loaded: list[cli_fake.FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "-m", "x", "-no-cnv", "-p", r"a\n\x41\"", "-n", "3", "--quiet"]) == 0
    assert loaded[0].prompts == ['a\nA"']
    assert capsys.readouterr() == ("you", "")
    assert loaded[0].options[0]["split_reasoning"] is False


def test_arguments_reach_the_engine(loaded: list[cli_fake.FakeModel]) -> None:
    words = (
        "-c 99 -t 3 -ctk q8_0 -ctv f32 -n 4 -r a\\n -r b --ignore-eos --override-kv a.b=int:3 --device none"
    )
    assert main(["run", "-m", "dir/x", "-p", "hi", *words.split()]) == 0
    assert loaded[0].path == Path("dir/x")
    assert loaded[0].arguments == {
        "device": "cpu", "n_ctx": 99, "n_threads": 3, "overrides": {"a.b": 3}, "cache_type_k": "q8_0",
        "cache_type_v": "f32", "n_gpu_layers": None, "precise": False, "main_gpu": None, "tensor_split": [],
        "quiet": False,
    }  # fmt: skip
    options = loaded[0].options[0]
    assert (options["max_tokens"], options["stop"], options["ignore_eog"]) == (4, ("a\n", "b"), True)


def test_precise_reaches_the_engine(loaded: list[cli_fake.FakeModel]) -> None:
    assert main(["run", "-m", "x", "-p", "hi", "--precise"]) == 0
    assert loaded[0].arguments["precise"] is True


@pytest.mark.parametrize(("n", "limit"), [("-1", None), ("-2", None), ("0", 0), ("5", 5)])
def test_n_predict(loaded: list[cli_fake.FakeModel], n: str, limit: int | None) -> None:
    assert main(["run", "-m", "x", "-p", "hi", "-n", n]) == 0
    assert loaded[0].options[0]["max_tokens"] == limit


def test_threads_of_zero_are_all(loaded: list[cli_fake.FakeModel]) -> None:
    assert main(["run", "-m", "x", "-p", "hi", "-t", "0"]) == 0
    assert loaded[0].arguments["n_threads"] == os.cpu_count()


def test_thinking_goes_to_standard_error(
    loaded: list[cli_fake.FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "-m", "x", "-p", "think", "--no-perf"]) == 0
    assert capsys.readouterr() == ("thought about think", "hm\n")
    assert main(["run", "-m", "x", "-p", "think", "--quiet"]) == 0
    assert capsys.readouterr() == ("thought about think", "")
    assert main(["run", "-m", "x", "-p", "think", "--quiet", "--reasoning-format", "none"]) == 0
    assert capsys.readouterr() == ("<think>hm</think>\n\nthought about think", "")


def test_reasoning_asks_the_template(loaded: list[cli_fake.FakeModel]) -> None:
    assert main(["run", "-m", "x", "-p", "hi", "--reasoning", "off"]) == 0
    assert loaded[0].prompts == ["[user:hi](enable_thinking=False)[assistant:"]
    assert main(["run", "-m", "x", "-p", "hi", "--chat-template-kwargs", '{"a": 1}']) == 0
    assert loaded[1].prompts == ["[user:hi](a=1)[assistant:"]
    # QwQ's template closes the thinking it opened unless it is told otherwise.
    assert loaded[1].chat_template.arguments == {"a": 1, "enable_thinking": True}


def test_reasons_of_an_end_that_is_not_natural(
    loaded: list[cli_fake.FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", "-m", "x", "-p", "hi", "-c", "25", "--no-perf"])
    assert capsys.readouterr().err == "[the context of 25 tokens is full; --ctx-size gives more]\n"
    main(["run", "-m", "x", "-p", "hi", "-n", "2", "--no-perf"])
    assert capsys.readouterr().err == "[stopped after 2 tokens, as --predict says]\n"
    main(["run", "-m", "x", "-p", "hi", "-n", "2", "--quiet"])
    assert capsys.readouterr().err == ""


def test_prompt_that_does_not_fit(
    loaded: list[cli_fake.FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "-m", "x", "-p", "hi", "-c", "10"]) == 1
    assert capsys.readouterr() == (
        "",
        "gristmill: error: the prompt has 20 tokens, but the context holds 10\n",
    )


def test_display_prompt(loaded: list[cli_fake.FakeModel], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", "x", "-no-cnv", "-p", "hi", "--display-prompt", "-n", "3", "-q"]) == 0
    assert capsys.readouterr().out == "hiyou"


def test_verbose_prompt(loaded: list[cli_fake.FakeModel], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", "x", "-no-cnv", "-p", "hi", "--verbose-prompt", "-n", "1", "-q"]) == 0
    assert capsys.readouterr().err == "     104  'h'\n     105  'i'\n"


def test_prompt_file(loaded: list[cli_fake.FakeModel], tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_text("a\\tb\n\n")
    for flag, expected in (("-f", "a\tb\n"), ("-bf", "a\tb\n\n")):
        assert main(["run", "-m", "x", "-no-cnv", flag, str(file)]) == 0
        assert loaded[-1].prompts == [expected]
    assert main(["run", "-m", "x", "-no-cnv", "-f", str(file), "--no-escape"]) == 0
    assert loaded[-1].prompts == ["a\\tb\n"]


def test_prompt_from_standard_input(
    loaded: list[cli_fake.FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\\n\n")))
    assert main(["run", "-m", "x"]) == 0
    assert loaded[0].prompts == ["[user:hi\\n][assistant:"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main(["run", "-m", "x"]) == 2
    assert "standard input is empty" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert main(["run", "-m", "x"]) == 1
    assert capsys.readouterr().err.endswith("error: standard input: byte 0xff at 0 is not UTF-8\n")


def test_chat_template_of_the_command_line(
    loaded: list[cli_fake.FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gristmill.chat")
    assert main(["run", "-m", "x", "-p", "hi", "--chat-template", "chatml"]) == 0
    assert loaded[0].prompts == ["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"]
    assert main(["run", "-m", "x", "-p", "hi", "--chat-template", "{{ messages[0].content }}!"]) == 0
    assert loaded[1].prompts == ["hi!"]
    assert main(["run", "-m", "x", "-p", "hi", "--chat-template", "llama2"]) == 2
    assert "llama2" in capsys.readouterr().err


def test_template_flags_without_a_chat_warn(
    loaded: list[cli_fake.FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "-m", "x", "-p", "hi", "-no-cnv", "-sys", "y", "-q"]) == 0
    assert (
        capsys.readouterr().err
        == "gristmill: warning: --system-prompt has no effect with --no-conversation\n"
    )


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        ("-t 2 -tb 3", "--threads-batch has no effect: --threads counts for prefill too"),
        ("--mlock", "--mlock has no effect: pages of the model file are never locked"),
    ],
)
def test_what_has_no_effect_is_said_and_goes_on(
    loaded: list[cli_fake.FakeModel], capsys: pytest.CaptureFixture[str], words: str, warning: str
) -> None:
    assert main(["run", "-m", "x", "-p", "hi", "-q", *words.split()]) == 0
    out, err = capsys.readouterr()
    assert out
    assert err == f"gristmill: warning: {warning}\n"


@pytest.mark.parametrize("words", ["-ngl 0", "-ngl auto", "-t 2 -tb 2"])
def test_what_has_its_effect_is_silent(
    loaded: list[cli_fake.FakeModel], capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert main(["run", "-m", "x", "-p", "hi", "-q", *words.split()]) == 0
    assert capsys.readouterr().err == ""


def test_priority_sets_llama_cpps_niceness(monkeypatch: pytest.MonkeyPatch) -> None:
    from gristmill.cli.run import set_priority

    calls: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "setpriority", lambda *call: calls.append(call))
    for priority in (-1, 0, 1, 2, 3):
        set_priority(priority)
    assert calls == [(os.PRIO_PROCESS, 0, nice) for nice in (5, -5, -10, -20)]


def test_priority_of_the_process() -> None:
    """Lowering needs no privilege, so it can be seen; where raising fails, the answer comes all the same."""
    code = "import sys, os; sys.argv[1:] = ['run', '-m', 'x', '-p', 'hi', '-q', '--prio', '-1']\n"
    code += f"exec(open({FAKE!r}).read().replace('sys.exit(main())', 'main(); print(os.getpriority(0, 0))'))"
    before = os.getpriority(os.PRIO_PROCESS, 0)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.endswith(f"characters{max(before, 5)}\n") or before > 5
    done = gristmill("run", "-m", "x", "-p", "hi", "-q", "--prio", "2")
    assert done.returncode == 0
    assert done.stderr == "" or re.fullmatch(
        r"gristmill: warning: --prio 2: cannot set niceness -10: [\w ]+\n", done.stderr
    )


# In processes of their own -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["run", "-m", "/nonexistent.gguf", "-p", "x"], 1, "/nonexistent.gguf: "),
        (["run", "-m", "/", "-p", "x"], 1, "/: "),
        (["run", "-m", "x", "-f", "/nonexistent"], 1, "/nonexistent: No such file or directory"),
        (["run", "--nonsense"], 2, "unknown flag --nonsense"),
        (["run", "--temp", "x"], 2, "expected a number"),
        (["run", "-m", "x", "-p", "x", "--override-kv", "a"], 2, "KEY=TYPE:VALUE"),
        (["run", "-m", "x", "-p", "\\xff"], 2, "--prompt: byte 0xff"),
        (["run", "-m", "x", "-no-cnv"], 2, "standard input is empty"),
        (["info", "/nonexistent.gguf"], 1, "/nonexistent.gguf: "),
        (["info"], 2, "no file is given"),
        (["tokenize", "-m", "/nonexistent.gguf", "x"], 1, "/nonexistent.gguf: "),
        (["pull", "nonsense"], 2, "unknown model 'nonsense'"),
        (["nonsense"], 2, "unknown command 'nonsense'"),
        ([], 2, "a command is needed"),
        (["rnu"], 2, "did you mean run?"),
    ],
)
def test_errors_are_one_line(args: list[str], status: int, message: str) -> None:
    done = gristmill(*args, fake=False)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.startswith("gristmill: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback() -> None:
    done = gristmill("run", "-m", "/nonexistent.gguf", "-p", "x", "--debug", fake=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("gristmill: error: /nonexistent.gguf: ")


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["run", "--help"]])
def test_nothing_heavy_is_imported_to_say_who_we_are(args: list[str]) -> None:
    code = """
import sys
from gristmill.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
heavy = {"numpy", "tokenizers", "jinja2", "rich", "prompt_toolkit", "gguf"}
print(heavy & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == "set()\n"
    assert done.stdout.startswith(("gristmill ", "usage: gristmill"))


def test_a_warning_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, FAKE, "run", "-m", "x", "-p", "hi", "-q"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT | {"FAKE_WARNING": "1"},
    )
    assert done.stderr == "gristmill: warning: something odd\n"


def test_ctrl_c_ends_with_130_and_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, FAKE, "run", "-m", "x", "-p", "slowly"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stdout.read(4) == b"word"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(out) < 4900  # it did not go on to the end
    assert b"Traceback" not in err
    assert b"answer" in err  # how far it got


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, FAKE, "run", "-m", "x", "-p", "slowly"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    process.stdout.read(4)
    process.stdout.close()
    start = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 141
    assert err == b""
    assert time.monotonic() - start < 10


def test_out_of_memory_and_the_unexpected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gristmill.cli import run

    for error, line in (
        (MemoryError(), "out of memory"),
        (OSError(28, "No space left on device", "a\nb"), "a b: No space left on device"),
        (ZeroDivisionError("huh"), "internal error: ZeroDivisionError: huh (--debug shows where)"),
        (RecursionError("deep"), "internal error: RecursionError: deep (--debug shows where)"),
    ):

        def fail(*args: object, error: Exception = error, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(run, "_sampler", lambda args: None)
        monkeypatch.setattr(run, "_load", fail)
        assert main(["run", "-m", "x", "-p", "hi"]) == 1
        assert capsys.readouterr().err == f"gristmill: error: {line}\n"


def test_an_answer_that_the_terminal_cannot_spell() -> None:
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, FAKE, "run", "-m", "x", "-no-cnv", "-p", "é", "-q", "--display-prompt"],
        capture_output=True, check=False, stdin=subprocess.DEVNULL, env=environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith(b"?you said")
