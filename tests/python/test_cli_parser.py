"""Flags: spelling, values, llama.cpp's rules, and the two commands published for QwQ-32B."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest
from gristmill.cli import COMMANDS, build_parser, parse
from gristmill.cli.flags import rope_overrides, sampler_arguments
from gristmill.cli.parser import Parser, UsageError
from gristmill.metadata import parse_overrides

# As published, but for the program's name.
STRAWBERRY = r"""
gristmill run --model qwq-32b-q4_k_m.gguf --threads 32 --ctx-size 32768 --seed 1234 --temp 0.6 --min-p 0.0 \
  --top-k 40 --top-p 0.95 -no-cnv --samplers "top_k;top_p;min_p;temperature;" --prompt \
  "<|im_start|>user\nHow many r's are in the word \"strawberry\"<|im_end|>\n<|im_start|>assistant\n<think>\n"
"""
STRAWBERRY_PROMPT = """<|im_start|>user
How many r's are in the word "strawberry"<|im_end|>
<|im_start|>assistant
<think>
"""
FLAPPY = r"""
gristmill run --model QwQ-32B-Q4_K_M.gguf --threads 32 --ctx-size 16384 --n-gpu-layers 99 --seed 3407 \
  --prio 2 --temp 0.6 --repeat-penalty 1.1 --dry-multiplier 0.5 --min-p 0.01 --top-k 40 --top-p 0.95 -no-cnv \
  --samplers "top_k;top_p;min_p;temperature;dry;typ_p;xtc" --override-kv qwen2.context_length=int:131072 \
  --override-kv qwen2.rope.scaling.type=str:yarn --override-kv qwen2.rope.scaling.factor=float:4 \
  --override-kv qwen2.rope.scaling.original_context_length=int:32768 --prompt "..."
"""


def words(command: str) -> list[str]:
    """The arguments that a shell passes; unlike a shell, shlex keeps a newline after a backslash."""
    return shlex.split(command.replace("\\\n", ""))[1:]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("LLAMA_ARG_"):
            monkeypatch.delenv(name)


def run_args(*words: str) -> argparse.Namespace:
    return parse(["run", *words])


def run_parser() -> Parser:
    actions = build_parser("run")._subparsers
    assert actions is not None
    parser = actions._group_actions[0].choices["run"]  # type: ignore[index]
    assert isinstance(parser, Parser)
    return parser


def test_published_command_strawberry() -> None:
    args = parse(words(STRAWBERRY))
    assert (args.model, args.threads, args.ctx_size) == ("qwq-32b-q4_k_m.gguf", 32, 32768)
    assert args.conversation is False
    assert args.samplers == "top_k;top_p;min_p;temperature;"
    assert sampler_arguments(args) == {"temp": 0.6, "min_p": 0.0, "top_k": 40, "top_p": 0.95, "seed": 1234}
    assert not getattr(args, "warnings", [])
    from gristmill.cli.inputs import given_text

    assert given_text(args) == STRAWBERRY_PROMPT


def test_published_command_flappy() -> None:
    args = parse(words(FLAPPY))
    assert (args.n_gpu_layers, args.prio, args.prompt) == (99, 2, "...")
    assert sampler_arguments(args) == {
        "temp": 0.6, "repeat_penalty": 1.1, "dry_multiplier": 0.5, "min_p": 0.01, "top_k": 40, "top_p": 0.95,
        "seed": 3407,
    }  # fmt: skip
    assert parse_overrides(*args.override_kv) == {
        "qwen2.context_length": 131072,
        "qwen2.rope.scaling.type": "yarn",
        "qwen2.rope.scaling.factor": 4.0,
        "qwen2.rope.scaling.original_context_length": 32768,
    }
    assert not getattr(args, "warnings", [])


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("-m f", "model", "f"),
        ("--model f", "model", "f"),
        ("-p x", "prompt", "x"),
        ("--prompt -x", "prompt", "-x"),
        ("--prompt --temp", "prompt", "--temp"),
        ("--prompt=a=b", "prompt", "a=b"),
        ("-p=a", "prompt", "a"),
        ("-f x", "file", "x"),
        ("-sys x", "system_prompt", "x"),
        ("-n 5", "n_predict", 5),
        ("-n -2", "n_predict", -2),
        ("--predict 5", "n_predict", 5),
        ("--n-predict 5", "n_predict", 5),
        ("--n_predict 5", "n_predict", 5),
        ("-c 7", "ctx_size", 7),
        ("-t 3", "threads", 3),
        ("-t -1", "threads", -1),
        ("-s 9", "seed", 9),
        ("-s -1", "seed", -1),
        ("--seed 4294967295", "seed", 4294967295),
        ("--temperature 0.5", "temp", 0.5),
        ("--top_k 5", "top_k", 5),
        ("--top-nsigma 1", "top_n_sigma", 1.0),
        ("--typical-p 0.3", "typical", 0.3),
        ("--sampling-seq kpmt", "sampler_seq", "kpmt"),
        ("--sampler-seq kpmt", "sampler_seq", "kpmt"),
        ("--repeat-last-n -1", "repeat_last_n", -1),
        ("--dry-penalty-last-n -1", "dry_penalty_last_n", -1),
        ("-ngl 12", "n_gpu_layers", 12),
        ("--gpu-layers auto", "n_gpu_layers", -1),
        ("--n-gpu-layers all", "n_gpu_layers", -2),
        ("-ngl 0", "n_gpu_layers", 0),
        ("--prio -1", "prio", -1),
        ("-no-cnv", "conversation", False),
        ("--no-conversation", "conversation", False),
        ("-cnv", "conversation", True),
        ("", "conversation", None),
        ("-st", "single_turn", True),
        ("", "escape", True),
        ("--no-escape", "escape", False),
        ("-e", "escape", True),
        ("-ctk q8_0", "cache_type_k", "q8_0"),
        ("--cache-type-v f32", "cache_type_v", "f32"),
        ("--color", "color", "on"),
        ("--color off", "color", "off"),
        ("--color -p x", "prompt", "x"),
        ("-r a -r b", "reverse_prompt", ["a", "b"]),
        ("--override-kv a=int:1 --override-kv b=int:2", "override_kv", ["a=int:1", "b=int:2"]),
        ("-l 15043-1", "logit_bias", [(15043, -1.0)]),
        ("-l 15043+1.5 --logit-bias 2-inf", "logit_bias", [(15043, 1.5), (2, float("-inf"))]),
        ("--chat-template-kwargs {\"a\":1}", "chat_template_kwargs", {"a": 1}),
        ("--no-display-prompt", "display_prompt", False),
        ("--no-perf", "show_timings", False),
        ("--log-disable", "quiet", True),
        ("--debug", "debug", True),
        ("--yarn-ext-factor -1", "yarn_ext_factor", -1.0),
    ],
)  # fmt: skip
def test_flag(words: str, name: str, value: object) -> None:
    got = getattr(run_args(*words.split()), name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tmp 1", "unknown flag --tmp, did you mean --temp?"),
        ("-prompt x", "unknown flag -prompt, did you mean --prompt?"),
        ("-tempo 1", "unknown flag -tempo"),
        ("--samplrs x", "did you mean --samplers?"),
        ("--prompt", "--prompt needs a value"),
        ("--jinja=1", "--jinja takes no value"),
        ("word", "unrecognized arguments: word"),
        ("-n -3", "expected at least -2, got -3"),
        ("-n x", "expected a whole number, got 'x'"),
        ("--temp nan", "expected a finite number"),
        ("--temp inf", "expected a finite number"),
        ("--top-k 1.5", "expected a whole number"),
        ("--prio 4", "expected -1 to 3, got 4"),
        ("--mirostat 3", "expected 0 to 2, got 3"),
        ("-c -1", "expected at least 0"),
        ("-ctk q4_0", "invalid choice"),
        ("-l 15043", "TOKEN_ID+BIAS"),
        ("-l -1+2", "TOKEN_ID+BIAS"),
        ("-l 1+nan", "TOKEN_ID+BIAS"),
        ("--rope-scale 0", "above 0"),
        ("-p a -f b", "not allowed with"),
        ("--samplers top_k --sampler-seq k", "not allowed with"),
        ("--chat-template-kwargs [1]", "expected a JSON object"),
        ("--grammar x", "--grammar is not supported"),
        ("--lora x", "--lora is not supported"),
        ("-hf a/b", "-hf is not supported"),
    ],
)
def test_refused(words: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_args(*words.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("-fa on", "-fa"),
        ("-fa", "-fa"),
        ("--flash-attn off -p x", "--flash-attn"),
        ("--mlock", "--mlock"),
        ("--no-mmap", "--no-mmap"),
        ("-b 512", "-b"),
        ("--ubatch-size 512", "--ubatch-size"),
        ("--keep 8", "--keep"),
        ("--poll 50", "--poll"),
        ("--numa distribute", "--numa"),
        ("-ot exps=CPU", "-ot"),
        ("-md draft.gguf", "-md"),
        ("--reasoning-budget 100", "--reasoning-budget"),
    ],
)
def test_flag_without_effect_says_so(words: str, flag: str) -> None:
    (warning,) = run_args(*words.split()).warnings
    assert warning.startswith(f"{flag} has no effect: ")


@pytest.mark.parametrize(
    "words",
    [
        "--jinja",
        "--no-warmup",
        "--no-context-shift",
        "-fa auto",
        "--keep 0",
        "--keep -1",
        "-np 1",
        "--load-mode mmap",
    ],
)
def test_flag_that_asks_for_what_happens_anyway_is_silent(words: str) -> None:
    assert not getattr(run_args(*words.split()), "warnings", [])


def test_every_flag_without_effect_is_taken_and_reported_or_satisfied() -> None:
    """Each of them parses alone: none needs another, none clashes in spelling."""
    from gristmill.cli.foreign import _NO_EFFECT, _REFUSED, _SATISFIED

    for flags, n_values, _, harmless in _NO_EFFECT:
        for flag in flags:
            value = next(v for v in ("7", "8") if v not in harmless)
            assert run_args(flag, *[value] * n_values).warnings, flag
    for flags in _SATISFIED:
        for flag in flags:
            assert not getattr(run_args(flag), "warnings", []), flag
    for flags, n_values, _ in _REFUSED:
        for flag in flags:
            with pytest.raises(UsageError, match="not supported"):
                run_args(flag, *["7"] * n_values)


def test_environment_variables_stand_for_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_THREADS", "5")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "77")
    monkeypatch.setenv("LLAMA_ARG_OFFLINE", "true")
    assert run_args().threads == 5
    assert run_args("-t", "6").threads == 6
    assert run_args().ctx_size == 77
    assert run_args().offline is True
    monkeypatch.setenv("LLAMA_ARG_OFFLINE", "perhaps")
    with pytest.raises(UsageError, match="LLAMA_ARG_OFFLINE"):
        run_args()


def test_sampling_parameters_that_are_not_given_are_not_passed() -> None:
    assert sampler_arguments(run_args()) == {"seed": -1}


def test_dry_sequence_breakers() -> None:
    args = run_args("--dry-sequence-breaker", "\\n", "--dry-sequence-breaker", "x")
    assert sampler_arguments(args)["dry_sequence_breakers"] == ["\n", "x"]
    args = run_args("--dry-sequence-breaker", "x", "--dry-sequence-breaker", "none")
    assert sampler_arguments(args)["dry_sequence_breakers"] == []


ROPE = "qwen2.rope"


@pytest.mark.parametrize(
    ("words", "metadata", "expected"),
    [
        ("", {}, {}),
        ("--rope-scaling yarn", {}, {"scaling.type": "yarn"}),
        ("--rope-scaling none", {f"{ROPE}.scaling.type": "yarn"}, {"scaling.type": "none"}),
        ("--rope-scale 4", {}, {"scaling.factor": 4.0, "scaling.type": "linear"}),
        ("--rope-scale 4", {f"{ROPE}.scaling.type": "yarn"}, {"scaling.factor": 4.0}),
        ("--rope-scaling yarn --rope-scale 4", {}, {"scaling.factor": 4.0, "scaling.type": "yarn"}),
        ("--rope-freq-scale 0.25", {}, {"scaling.factor": 4.0, "scaling.type": "linear"}),
        ("--rope-freq-scale 0", {}, {}),
        ("--rope-freq-base 500000", {}, {"freq_base": 500000.0}),
        ("--rope-freq-base 0", {}, {}),
        ("--yarn-orig-ctx 32768", {}, {"scaling.original_context_length": 32768}),
        ("--yarn-orig-ctx 0", {}, {}),
        ("--yarn-attn-factor 1.2", {}, {"scaling.attn_factor": 1.2}),
        ("--yarn-attn-factor -1", {}, {}),
        ("--yarn-beta-fast 30 --yarn-beta-slow 2", {},
         {"scaling.yarn_beta_fast": 30.0, "scaling.yarn_beta_slow": 2.0}),
        ("--yarn-ext-factor 0.5", {}, {"scaling.yarn_ext_factor": 0.5}),
    ],
)  # fmt: skip
def test_rope_flags_become_metadata(
    words: str, metadata: dict[str, object], expected: dict[str, object]
) -> None:
    got = rope_overrides(run_args(*words.split()), "qwen2", metadata)
    assert got == {f"{ROPE}.{key}": value for key, value in expected.items()}


def test_two_ways_of_saying_the_rope_factor_clash() -> None:
    with pytest.raises(UsageError, match="give one"):
        rope_overrides(run_args("--rope-scale", "4", "--rope-freq-scale", "0.25"), "qwen2", {})


def test_commands_have_files_and_help() -> None:
    import gristmill.cli

    folder = Path(gristmill.cli.__file__).parent
    for command in COMMANDS:
        assert (folder / f"{command}.py").is_file()
        assert build_parser(command).format_help().count(command)


def test_no_long_flag_of_run_is_without_help_or_meaning() -> None:
    """A flag is listed with a help text or is one that is taken for llama.cpp's sake."""
    from gristmill.cli.parser import NoEffect, Refused

    for flag, action in run_parser().flags.items():
        hidden = action.help is argparse.SUPPRESS
        assert not hidden or isinstance(action, (NoEffect, Refused)) or flag in {
            "-lv", "--verbosity", "--log-verbosity",
        }, flag  # fmt: skip
