"""The commands on real files, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from gristmill import Tokenizer, _core, quants
from test_cli_parser import FLAPPY, STRAWBERRY, words

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG_")}


def gristmill(*args: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gristmill", *map(str, args)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=ENVIRONMENT,
    )


def test_completion_knows_the_capital(smollm2_path: Path) -> None:
    done = gristmill(
        "run", "-m", smollm2_path, "-no-cnv", "-p", "The capital of France is", "-n", 4, "--temp", 0
    )
    assert done.returncode == 0
    assert "Paris" in done.stdout
    assert re.search(
        r"\[prompt 5 tokens, [\d.]+ tok/s · answer 4 tokens, [\d.]+ tok/s · first token after [\d.]+ s\]\n$",
        done.stderr,
    )


def test_precise_is_among_the_settings(smollm2_path: Path) -> None:
    q4_1 = quants.format_named("Q4_1").type_id
    for flags, mode in (([], "prefill"), (["--precise"], "precise")):
        bits, arithmetic = (ask("", q4_1, mode) for ask in (_core.activation_bits, _core.arithmetic))
        done = gristmill("run", "-m", smollm2_path, "-no-cnv", "-p", "hi there", "-n", 1, "-v", *flags)
        assert done.returncode == 0
        assert re.search(rf"^\[context .* · {bits}-bit {arithmetic} prefill\]$", done.stderr, re.MULTILINE)


def test_same_seed_same_text_on_any_number_of_threads(smollm2_path: Path) -> None:
    first, second = (
        gristmill("run", "-m", smollm2_path, "-p", "Tell me a story.", "-n", 16, "-s", 7, "-q", "-t", threads)
        for threads in (1, 2)
    )
    other = gristmill("run", "-m", smollm2_path, "-p", "Tell me a story.", "-n", 16, "-s", 8, "-q")
    assert first.stdout == second.stdout != ""
    assert other.stdout != first.stdout
    assert first.stderr == ""


@pytest.mark.parametrize("command", [STRAWBERRY, FLAPPY], ids=["strawberry", "flappy"])
def test_published_commands_run_with_another_model(smollm2_path: Path, command: str) -> None:
    args = words(command)
    args[args.index("--model") + 1] = str(smollm2_path)
    done = gristmill(*args, "-n", 4)
    assert done.returncode == 0
    assert done.stdout
    lines = done.stderr.splitlines()
    assert all(line.startswith(("gristmill: warning: ", "[")) for line in lines)
    if command is FLAPPY:
        assert any("n_gpu_layers=99 has no effect" in line for line in lines)
        assert any("'qwen2.context_length' has no effect" in line for line in lines)


def test_chat_by_lines_reuses_what_was_said(smollm2_path: Path) -> None:
    done = gristmill("run", "-m", smollm2_path, "-cnv", "--temp", 0, "-n", 8, stdin="Say hello.\nAgain.\n")
    assert done.returncode == 0
    statistics = [line for line in done.stderr.splitlines() if line.startswith("[prompt")]
    assert len(statistics) == 2
    reused = re.search(r"prompt (\d+) tokens \((\d+) reused\)", statistics[1])
    assert reused is not None
    n_first = int(statistics[0].split()[1])
    assert int(reused[2]) >= n_first


def test_context_that_is_full(smollm2_path: Path) -> None:
    done = gristmill("run", "-m", smollm2_path, "-no-cnv", "-p", "1 2 3 4 5", "-c", 16, "--ignore-eos")
    assert done.returncode == 0
    assert "[the context of 16 tokens is full; --ctx-size gives more]" in done.stderr
    done = gristmill("run", "-m", smollm2_path, "-no-cnv", "-p", "1 " * 50, "-c", 16)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"gristmill: error: .*\b10\d tokens.*\b16\b.*\n", done.stderr)


def test_chat_on_a_terminal(smollm2_path: Path, tmp_path: Path) -> None:
    environment = ENVIRONMENT | {
        "XDG_STATE_HOME": str(tmp_path),
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    child = pexpect.spawn(
        sys.executable,
        ["-m", "gristmill", "run", "-m", str(smollm2_path), "-n", "200", "--ignore-eos"],
        env=environment,
        encoding="utf-8",
        timeout=60,
    )
    child.expect(">>>")
    child.send("Count to a thousand.\r")
    child.expect(r"\x1b\[\?2004l")  # the line is taken; what comes now is the answer, not the line's echo
    child.expect("[A-Za-z]{3}.*[ ,.]")
    child.sendintr()
    child.expect("tok/s")
    child.expect(">>>")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_tokenize(smollm2_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(smollm2_path)
    text = "<|im_start|>user\nHello world"
    expected = tokenizer.encode(text, parse_special=True)
    escaped = text.replace("\n", "\\n")
    assert gristmill("tokenize", "-m", smollm2_path, escaped).stdout == " ".join(map(str, expected)) + "\n"
    assert gristmill("tokenize", "-m", smollm2_path, "--ids", "-p", escaped).stdout == f"{expected}\n"
    assert gristmill("tokenize", "-m", smollm2_path, "-", stdin=text).stdout.split() == [
        str(i) for i in expected
    ]
    assert gristmill("tokenize", "-m", smollm2_path, "--no-escape", "a\\nb").stdout.split() == [
        str(i) for i in tokenizer.encode("a\\nb")
    ]
    plain = gristmill("tokenize", "-m", smollm2_path, "--no-parse-special", escaped).stdout.split()
    assert plain == [str(i) for i in tokenizer.encode(text, parse_special=False)]
    assert len(plain) > len(expected)
    shown = gristmill("tokenize", "-m", smollm2_path, "--show", "Hello").stdout
    assert shown == "".join(f"{i:>8}  'Hello'\n" for i in tokenizer.encode("Hello"))


def test_tokenize_is_given_one_text(smollm2_path: Path) -> None:
    for args in (["a", "-p", "b"], ["a", "--stdin"]):
        done = gristmill("tokenize", "-m", smollm2_path, *args)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "gristmill: error: more than one text is given\n"


def test_info(smollm2_path: Path) -> None:
    done = gristmill("info", smollm2_path, "--ctx-size", 1024, "-ctk", "q8_0")
    assert done.returncode == 0
    assert done.stderr == ""
    rows = dict(
        re.split(r"  +", line.strip(), maxsplit=1) for line in done.stdout.splitlines() if line[0] == " "
    )
    assert rows["architecture"] == "llama"
    assert rows["layers"] == "30"
    assert rows["heads"] == "9 query, 3 key-value, of size 64"
    assert rows["RoPE base"] == "100000"
    # 1024 positions x 30 layers x 3 heads x 64 values, of 34/32 bytes in keys and 2 in values.
    assert (
        rows["KV cache, 1024 tokens"]
        == f"{1024 * 30 * 3 * 64 * (34 / 32 + 2) / 2**20:.2f} MiB when full (q8_0/f16)"
    )
    plain = json.loads(gristmill("info", smollm2_path, "--ctx-size", 1024, "-ctk", "q8_0", "--json").stdout)
    assert plain["memory"]["cache"] == 1024 * 30 * 3 * 64 * (34 + 64) // 32
    assert plain["memory"]["total"] == plain["memory"]["cache"] + plain["memory"]["weights"]
    assert plain["context_length"] == 8192


def test_info_of_a_truncated_file(qwen7b_part_path: Path) -> None:
    done = gristmill("info", qwen7b_part_path)
    assert done.returncode == 0
    assert "with thinking" in done.stdout
    assert done.stderr.startswith(f"gristmill: warning: {qwen7b_part_path}: truncated: ")
    done = gristmill("run", "-m", qwen7b_part_path, "-p", "hi")
    assert done.returncode == 1
    assert done.stderr.startswith(f"gristmill: error: {qwen7b_part_path}: truncated: ")
    assert done.stderr.count("\n") == 1


def test_devices() -> None:
    for args in (["info", "--devices"], ["run", "--list-devices"]):
        done = gristmill(*args)
        assert done.returncode == 0
        assert re.match(r"CPU: .+\n  instruction sets: .*scalar", done.stdout)
        assert re.search(r"\nGPU: (none \(.+\)|cuda:0 .+)\n", done.stdout)
