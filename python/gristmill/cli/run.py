"""``gristmill run``: one answer to a prompt, or a chat."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.cli import add_command, output
from gristmill.cli.device_flags import add_device_flags, device_arguments
from gristmill.cli.escapes import process_escapes
from gristmill.cli.flags import (
    ON_OFF_AUTO,
    add_model_flags,
    add_precise_flag,
    add_rope_flags,
    add_sampling_flags,
    integer,
    overrides,
    sampler_arguments,
)
from gristmill.cli.foreign import add_foreign_flags
from gristmill.cli.inputs import add_text_flags, argument_text, given_text, model_path, read_stdin, read_text
from gristmill.cli.parser import UsageError
from gristmill.cli.transcript import report, show_prompt
from gristmill.cli.turn import Answer, Limits, Speaker
from gristmill.errors import ArgumentError, GristmillWarning

if TYPE_CHECKING:
    from gristmill.chat import ChatTemplate
    from gristmill.cli.parser import Parser
    from gristmill.model import Model
    from gristmill.sampling import SamplerChain

# ChatML, which QwQ, Qwen and SmolLM2 use: for -cnv with a file that has no template, as llama.cpp does.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Niceness for --prio, llama.cpp's: low, medium, high, realtime. 0 leaves the process as it is.
_NICENESS = {-1: 5, 1: -5, 2: -10, 3: -20}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds ``run``'s flags, which are llama.cpp's, with the same meaning."""
    parser = add_command(
        subparsers,
        "run",
        usage="gristmill run [-m FILE] [-p TEXT] [flags]",
        description="Answers a prompt, or chats when there is none. The flags are llama.cpp's, with its\n"
        "meaning; its flags that are not listed are taken with a warning that they have no effect,\n"
        "or refused where the answer would not be what they ask for.",
    )
    _add_prompt_flags(parser)
    _add_chat_flags(parser)
    add_model_flags(parser)
    add_rope_flags(parser)
    add_sampling_flags(parser)
    _add_machine_flags(parser)
    _add_output_flags(parser)
    add_foreign_flags(parser)


def _add_prompt_flags(parser: Parser) -> None:
    group = parser.add_argument_group("prompt")
    add_text_flags(group, "(default: standard input, or a chat on a terminal)")
    group.add_argument(
        "-n", "--predict", "--n-predict", dest="n_predict", type=integer(-2), default=-1, metavar="N",
        help="most tokens to generate (-1: no limit; -2: until the context is full)",
    )  # fmt: skip
    group.add_argument(
        "-r", "--reverse-prompt", action="append", default=[], metavar="TEXT", help="stop at TEXT; repeatable"
    )
    parser.environment |= {"--predict": "LLAMA_ARG_N_PREDICT"}


def _add_chat_flags(parser: Parser) -> None:
    group = parser.add_argument_group("chat")
    group.add_argument(
        "-cnv", "--conversation", action="store_true", default=None, help="use the chat template, chat on"
    )
    group.add_argument(
        "-no-cnv", "--no-conversation", dest="conversation", action="store_false", help="plain completion"
    )
    group.add_argument("-st", "--single-turn", action="store_true", help="end after one answer")
    group.add_argument(
        "-i", "--interactive", "-if", "--interactive-first", action="store_true", help="the same as -cnv"
    )
    system = group.add_mutually_exclusive_group()
    system.add_argument("-sys", "--system-prompt", metavar="TEXT")
    system.add_argument("-sysf", "--system-prompt-file", metavar="FILE")
    template = group.add_mutually_exclusive_group()
    template.add_argument(
        "--chat-template", metavar="JINJA", help="in place of the file's; or the name chatml"
    )
    template.add_argument("--chat-template-file", metavar="FILE")
    group.add_argument(
        "--chat-template-kwargs", type=_json_object, default={}, metavar="JSON", help="for the template"
    )
    group.add_argument(
        "-rea",
        "--reasoning",
        choices=("on", "off", "auto"),
        default="auto",
        help="ask the template for thinking",
    )
    group.add_argument(
        "--reasoning-format", choices=("none", "auto", "deepseek", "deepseek-legacy"), default="auto",
        help="none: leave thinking in the answer, tags and all; otherwise it goes to standard error",
    )  # fmt: skip
    group.add_argument("--skip-chat-parsing", dest="reasoning_format", action="store_const", const="none",
                       help="the same as --reasoning-format none")  # fmt: skip
    group.add_argument("--simple-io", action="store_true", help="chat by plain lines, without line editing")
    parser.environment |= {
        "--chat-template-kwargs": "LLAMA_ARG_CHAT_TEMPLATE_KWARGS",
        "--reasoning": "LLAMA_ARG_REASONING",
        "--reasoning-format": "LLAMA_ARG_THINK",
    }


def _add_machine_flags(parser: Parser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument(
        "-t", "--threads", type=integer(), metavar="N", help="(default: the engine's choice; 0: all)"
    )
    group.add_argument(
        "-tb", "--threads-batch", type=integer(), metavar="N", help="must be the same as --threads"
    )
    add_device_flags(group)
    group.add_argument("--list-devices", action="store_true", help="show the devices and end")
    group.add_argument(
        "--prio", type=integer(-1, 3), default=0, metavar="N",
        help="priority: -1 low, 0 normal, 1 medium, 2 high, 3 realtime",
    )  # fmt: skip
    add_precise_flag(group)
    group.add_argument("--offline", action="store_true", help="never fetch the demo model")
    parser.environment |= {
        "--threads": "LLAMA_ARG_THREADS",
        "--gpu-layers": "LLAMA_ARG_N_GPU_LAYERS",
        "--device": "LLAMA_ARG_DEVICE",
        "--main-gpu": "LLAMA_ARG_MAIN_GPU",
        "--tensor-split": "LLAMA_ARG_TENSOR_SPLIT",
        "--split-mode": "LLAMA_ARG_SPLIT_MODE",
        "--offline": "LLAMA_ARG_OFFLINE",
    }


def _add_output_flags(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "-q", "--quiet", "--log-disable", action="store_true", help="the answer and errors only"
    )
    group.add_argument("-v", "--verbose", "--log-verbose", action="store_true", help="say what is used")
    group.add_argument("-lv", "--verbosity", "--log-verbosity", type=integer(), help=argparse.SUPPRESS)
    group.add_argument("--verbose-prompt", action="store_true", help="show the prompt's tokens")
    group.add_argument(
        "--display-prompt",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="print the prompt first",
    )
    group.add_argument(
        "--show-timings", "--perf", action=argparse.BooleanOptionalAction, default=True,
        help="print tokens and speed at the end",
    )  # fmt: skip
    group.add_argument("-co", "--color", nargs="?", const="on", choices=ON_OFF_AUTO, default="auto")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value


# ------------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """Answers or chats and returns the exit status. Raises what :func:`gristmill.cli.main` reports."""
    if args.list_devices:
        from gristmill.cli.devices import print_devices

        return print_devices()
    if args.verbosity is not None:  # llama.cpp: 1 is errors only, 3 its default, 4 and more is debugging
        args.verbose |= args.verbosity > 3
    prompt = _read_prompt(args)
    system = _system_prompt(args)
    stop = tuple(process_escapes(r, "--reverse-prompt") if args.escape else r for r in args.reverse_prompt)
    sampler = _sampler(args)
    _warn_about_machine(args)
    set_priority(args.prio)
    path = model_path(args)
    model = _load(
        path,
        n_ctx=args.ctx_size or None,
        n_threads=_threads(args.threads),
        overrides=overrides(args, path),
        cache_type_k=args.cache_type_k,
        cache_type_v=args.cache_type_v,
        precise=args.precise,
        quiet=args.quiet,
        **device_arguments(args),
    )
    template = _template(args, model)
    if args.verbose:
        _describe(args, model, sampler)
    speaker = Speaker(
        model, sampler, Limits(None if args.n_predict < 0 else args.n_predict, stop, args.ignore_eos)
    )
    if template is None:
        if prompt is None:
            raise UsageError(f"{path}: no chat template to chat with: give --prompt, or --chat-template")
        return _complete(args, speaker, prompt)
    from gristmill.cli.chat import Chat

    chat = Chat(args, speaker, template, system)
    if prompt is None or (args.conversation and not args.single_turn and sys.stdin.isatty()):
        return chat.loop(prompt)
    answer = chat.turn(prompt)
    return _finish(args, speaker, answer)


def _complete(args: argparse.Namespace, speaker: Speaker, prompt: str) -> int:
    """Plain completion: the prompt as it is, the continuation as it comes."""
    ids = speaker.model.tokenizer.encode(prompt, add_special=True, parse_special=True)
    if not ids:
        raise UsageError("the prompt is empty")
    show_prompt(args, speaker, prompt, ids)
    writer = output.AnswerWriter(sys.stdout, None, color=args.color)
    return _finish(args, speaker, speaker.answer(ids, writer, split_reasoning=False))


def _finish(args: argparse.Namespace, speaker: Speaker, answer: Answer) -> int:
    """The lines after the answer, and the exit status."""
    report(args, speaker, answer)
    if answer.finish_reason == "interrupted":
        raise KeyboardInterrupt
    return 0


# What the flags ask for -------------------------------------------------------------------------------------


def _read_prompt(args: argparse.Namespace) -> str | None:
    """The prompt, or None for a chat. As in llama.cpp, escapes are processed in a prompt's file too."""
    if args.interactive and args.conversation is None:
        args.conversation = True
    given = given_text(args)
    if given is not None or args.conversation:
        return given
    if not sys.stdin.isatty():
        text = read_stdin().removesuffix("\n")
        if not text:
            raise UsageError("no prompt: standard input is empty; give --prompt")
        return text
    if args.conversation is False:
        raise UsageError("no prompt: give --prompt, or leave out --no-conversation to chat")
    return None


def _system_prompt(args: argparse.Namespace) -> str | None:
    """The system prompt; llama.cpp processes no escapes in it."""
    if args.system_prompt_file is not None:
        return read_text(args.system_prompt_file).removesuffix("\n")
    return None if args.system_prompt is None else argument_text(args.system_prompt, "--system-prompt")


def _load(path: Path, quiet: bool, **arguments: Any) -> Model:
    """Loads the model, with a bar where that takes its time; tests put another engine here."""
    from gristmill.cli.bars import byte_bar
    from gristmill.model import load

    with byte_bar(f"loading {path.name}", quiet=quiet) as progress:
        return load(path, progress=progress, **arguments)


def _sampler(args: argparse.Namespace) -> SamplerChain:
    """The chain. Its faults are those of the command line, so it is made before the model is loaded."""
    from gristmill.sampling import SamplerChain

    return SamplerChain.parse(
        args.samplers, letters=args.sampler_seq, preset=args.preset, **sampler_arguments(args)
    )


def _template(args: argparse.Namespace, model: Model) -> ChatTemplate | None:
    """The chat template to use; None for plain completion."""
    if args.conversation is False:
        for flag in ("chat_template", "chat_template_file", "system_prompt", "system_prompt_file"):
            if getattr(args, flag) is not None:
                name = flag.replace("_", "-")
                warnings.warn(
                    f"--{name} has no effect with --no-conversation", GristmillWarning, stacklevel=2
                )
        return None
    source = args.chat_template
    if args.chat_template_file is not None:
        source = read_text(args.chat_template_file)
    if source is None:
        if model.chat_template is not None or not args.conversation:
            return model.chat_template
        warnings.warn("the file has no chat template: ChatML is used", GristmillWarning, stacklevel=2)
        source = "chatml"
    if source == "chatml":
        source = CHATML
    elif "{" not in source:
        raise ArgumentError(f"--chat-template: {source!r} is neither Jinja nor the name chatml")
    from gristmill.chat import ChatTemplate

    tokenizer = model.tokenizer

    def text(token: int | None) -> str:
        return "" if token is None else tokenizer.token_text(token)

    return ChatTemplate(source, bos_token=text(tokenizer.bos_id), eos_token=text(tokenizer.eos_id))


def _threads(n: int | None) -> int | None:
    return n if n is None or n > 0 else os.cpu_count() or 1


def _warn_about_machine(args: argparse.Namespace) -> None:
    """Flags about devices and threads that cannot have the effect they ask for."""
    if args.threads_batch is not None and _threads(args.threads_batch) != _threads(args.threads):
        warnings.warn(
            "--threads-batch has no effect: --threads counts for prefill too", GristmillWarning, stacklevel=2
        )


def set_priority(priority: int) -> None:
    """Sets the process's niceness as llama.cpp does; where that is not allowed, warns.

    On Linux this holds for the calling thread and those it starts, so it must come before the engine's
    threads.
    """
    if priority == 0:
        return
    try:
        if not hasattr(os, "setpriority"):
            raise OSError(None, "this system has no niceness")
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS[priority])
    except OSError as error:
        warnings.warn(
            f"--prio {priority}: cannot set niceness {_NICENESS[priority]}: {error.strerror}",
            GristmillWarning,
            stacklevel=2,
        )


def _describe(args: argparse.Namespace, model: Model, sampler: SamplerChain) -> None:
    output.note(f"[{model.path}: {model.architecture}, {model.n_layer} layers, {model.n_vocab} tokens]")
    cache = f"{args.cache_type_k}/{args.cache_type_v}"
    prefill = f"{model.prefill_bits}-bit {model.prefill_arithmetic} prefill"
    output.note(
        f"[context {model.n_ctx} · cache {cache} · {model.n_threads} threads · {model.isa} · {prefill}]"
    )
    if model.device != "cpu":
        output.note(f"[{'; '.join(part.describe(model.n_layer) for part in model.device_layers)}]")
    output.note(f"[{sampler!r}]")
