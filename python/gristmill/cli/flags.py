"""The flags that commands share, spelled and defaulted as llama.cpp's, and what they mean here.

A flag that is not given stays None wherever "given" matters: sampling parameters (so that one set without its
sampler can be reported) and RoPE parameters (so that the file's own stand). Flags that llama.cpp has and
gristmill lacks are in :mod:`gristmill.cli.foreign`.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.cli.escapes import process_escapes
from gristmill.cli.parser import Parser, UsageError
from gristmill.errors import ArgumentError, GGUFError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gristmill.overrides import Scalar

CACHE_TYPES = ("f16", "f32", "q8_0")
ON_OFF_AUTO = ("on", "off", "auto", "enabled", "disabled", "true", "false", "1", "0", "-1")

# Value types ------------------------------------------------------------------------------------------------


def integer(low: int | None = None, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number between ``low`` and ``high``, both included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = (
                f"at least {low}"
                if high is None
                else f"at most {high}"
                if low is None
                else f"{low} to {high}"
            )
            raise argparse.ArgumentTypeError(f"expected {bounds}, got {value}")
        return value

    return parse


def number(text: str) -> float:
    """An argparse type: a finite number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value


def positive(text: str) -> float:
    """An argparse type: a finite number above zero."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def logit_bias(text: str) -> tuple[int, float]:
    """``TOKEN_ID(+|-)BIAS``, for example ``15043+1`` or ``15043-inf``."""
    match = re.fullmatch(r"\s*(\d+)\s*([+-].+)", text)
    try:
        value = (int(match[1]), float(match[2])) if match else None
    except ValueError:
        value = None
    if value is None or math.isnan(value[1]):
        raise argparse.ArgumentTypeError(f"expected TOKEN_ID+BIAS or TOKEN_ID-BIAS, got {text!r}")
    return value


# Groups of flags --------------------------------------------------------------------------------------------


def add_model_flags(parser: Parser) -> None:
    """``-m``, ``--override-kv``, the context and the KV cache's types."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m", "--model", metavar="FILE", help="GGUF file (default: the demo model, SmolLM2-135M)"
    )
    add_override_flags(parser)
    add_memory_flags(parser)
    parser.environment["--model"] = "LLAMA_ARG_MODEL"


def add_override_flags(parser: Parser) -> None:
    """``--override-kv``, repeatable."""
    parser.add_argument(
        "--override-kv",
        action="append",
        default=[],
        metavar="KEY=TYPE:VALUE,...",
        help="put VALUE in place of the file's metadata; TYPE is int, float, bool or str; repeatable",
    )


def add_memory_flags(parser: Parser) -> None:
    """``--ctx-size`` and the types of the KV cache."""
    group = parser.add_argument_group("context")
    group.add_argument(
        "-c",
        "--ctx-size",
        type=integer(0),
        default=0,
        metavar="N",
        help="tokens of context (0: the model's own)",
    )
    for flag, long, of in (("-ctk", "--cache-type-k", "keys"), ("-ctv", "--cache-type-v", "values")):
        group.add_argument(
            flag, long, choices=CACHE_TYPES, default="f16", help=f"type of cached {of} (default: f16)"
        )
    parser.environment |= {
        "--ctx-size": "LLAMA_ARG_CTX_SIZE",
        "--cache-type-k": "LLAMA_ARG_CACHE_TYPE_K",
        "--cache-type-v": "LLAMA_ARG_CACHE_TYPE_V",
    }


def add_precise_flag(group: argparse._ActionsContainer) -> None:
    """``--precise``, which llama.cpp has not."""
    group.add_argument(
        "--precise",
        action="store_true",
        help="activations of 15 or 16 bits, F16 and BF16 weights as floats "
        "(default: 8 bits, and 14 or 16; prompts twice as fast)",
    )


def add_rope_flags(parser: Parser) -> None:
    """RoPE and YaRN; :func:`overrides` turns them into metadata."""
    group = parser.add_argument_group("RoPE and YaRN (the file's own values unless given)")
    group.add_argument(
        "--rope-scaling", choices=("none", "linear", "yarn"), help="how positions are stretched"
    )
    group.add_argument("--rope-scale", type=positive, metavar="N", help="stretch positions N times")
    group.add_argument(
        "--rope-freq-base", type=number, metavar="N", help="RoPE base frequency (0: the file's)"
    )
    group.add_argument(
        "--rope-freq-scale", type=number, metavar="N", help="the same as --rope-scale 1/N (0: the file's)"
    )
    group.add_argument(
        "--yarn-orig-ctx", type=integer(0), metavar="N", help="context of the original model (0: same)"
    )
    group.add_argument(
        "--yarn-ext-factor",
        type=number,
        metavar="X",
        help="share of extrapolation, 0 to 1 (negative: by scaling type)",
    )
    group.add_argument(
        "--yarn-attn-factor",
        type=number,
        metavar="X",
        help="multiplies YaRN's scale of attention (negative: the file's)",
    )
    group.add_argument("--yarn-beta-fast", type=number, metavar="X", help="(negative: the file's, or 32)")
    group.add_argument("--yarn-beta-slow", type=number, metavar="X", help="(negative: the file's, or 1)")
    parser.environment |= {
        "--rope-scaling": "LLAMA_ARG_ROPE_SCALING_TYPE",
        "--rope-scale": "LLAMA_ARG_ROPE_SCALE",
        "--rope-freq-base": "LLAMA_ARG_ROPE_FREQ_BASE",
        "--rope-freq-scale": "LLAMA_ARG_ROPE_FREQ_SCALE",
        "--yarn-orig-ctx": "LLAMA_ARG_YARN_ORIG_CTX",
        "--yarn-ext-factor": "LLAMA_ARG_YARN_EXT_FACTOR",
        "--yarn-attn-factor": "LLAMA_ARG_YARN_ATTN_FACTOR",
        "--yarn-beta-fast": "LLAMA_ARG_YARN_BETA_FAST",
        "--yarn-beta-slow": "LLAMA_ARG_YARN_BETA_SLOW",
    }


# Each sampling parameter: its flags, its type, and its line in --help. The name that ``SamplerChain.parse``
# gives it is the first long flag with underscores. The defaults are ``SamplerChain.parse``'s, which are
# llama.cpp's.
_SAMPLING: tuple[tuple[tuple[str, ...], Callable[[str], Any], str], ...] = (
    (("--temp", "--temperature"), number, "temperature (0.8; 0: greedy)"),
    (("--top-k",), integer(), "keep the k most likely tokens (40; 0: all)"),
    (("--top-p",), number, "keep the most likely tokens that sum to p (0.95; 1: all)"),
    (("--min-p",), number, "drop tokens less likely than p times the likeliest (0.05; 0: none)"),
    (("--typical", "--typical-p"), number, "locally typical sampling (1: off)"),
    (
        ("--top-n-sigma", "--top-nsigma"),
        number,
        "keep logits within n standard deviations of the best (-1: off)",
    ),
    (("--xtc-probability",), number, "chance of excluding the top choices (0: off)"),
    (("--xtc-threshold",), number, "least probability of a top choice (0.1; above 0.5: off)"),
    (("--repeat-last-n",), integer(-1), "tokens that penalties look back on (64; 0: none)"),
    (("--repeat-penalty",), number, "divide the logits of repeated tokens (1: off)"),
    (("--presence-penalty",), number, "subtract once for a token that occurred (0: off)"),
    (("--frequency-penalty",), number, "subtract for each time a token occurred (0: off)"),
    (("--dry-multiplier",), number, "DRY: strength of the penalty on repeated sequences (0: off)"),
    (("--dry-base",), number, "DRY: growth with the length of a repetition (1.75)"),
    (("--dry-allowed-length",), integer(), "DRY: longest repetition without penalty (2)"),
    (("--dry-penalty-last-n",), integer(-1), "DRY: tokens to look back on (64; 0: off; -1: all)"),
    (("--dynatemp-range",), number, "dynamic temperature: range (0: off)"),
    (("--dynatemp-exp",), number, "dynamic temperature: exponent (1)"),
    (("--mirostat",), integer(0, 2), "Mirostat version in place of the chain's cutting samplers (0: off)"),
    (("--mirostat-lr",), number, "Mirostat: learning rate eta (0.1)"),
    (("--mirostat-ent",), number, "Mirostat: target entropy tau (5)"),
)


def _name(flags: tuple[str, ...]) -> str:
    return flags[0].removeprefix("--").replace("-", "_")


def add_sampling_flags(parser: Parser) -> None:
    """All flags of the sampler chain; :func:`sampler_arguments` reads them."""
    group = parser.add_argument_group("sampling (llama.cpp's defaults in parentheses)")
    order = group.add_mutually_exclusive_group()
    order.add_argument("--samplers", metavar="NAMES", help="the chain in order, separated by ';'")
    order.add_argument(
        "--sampler-seq", "--sampling-seq", metavar="LETTERS", help="the chain as one letter each"
    )
    group.add_argument(
        "-s",
        "--seed",
        type=integer(-1, 2**32 - 1),
        default=-1,
        metavar="N",
        help="seed (-1: another one each time)",
    )
    group.add_argument(
        "--preset", choices=("qwq",), help="a model's recommended sampling; other flags win over it"
    )
    for flags, kind, text in _SAMPLING:
        group.add_argument(*flags, dest=_name(flags), type=kind, metavar="N", help=text)
    group.add_argument(
        "--dry-sequence-breaker",
        action="append",
        metavar="TEXT",
        help="replaces DRY's breakers; repeatable; 'none'",
    )
    group.add_argument(
        "-l",
        "--logit-bias",
        type=logit_bias,
        action="append",
        default=[],
        metavar="ID(+|-)BIAS",
        help="repeatable",
    )
    group.add_argument(
        "--ignore-eos", action="store_true", help="never end the answer by the model's own choice"
    )
    parser.environment |= {
        "--temp": "LLAMA_ARG_TEMPERATURE",
        "--top-k": "LLAMA_ARG_TOP_K",
        "--top-p": "LLAMA_ARG_TOP_P",
        "--min-p": "LLAMA_ARG_MIN_P",
        "--repeat-penalty": "LLAMA_ARG_REPEAT_PENALTY",
        "--presence-penalty": "LLAMA_ARG_PRESENCE_PENALTY",
        "--frequency-penalty": "LLAMA_ARG_FREQUENCY_PENALTY",
    }


# What flags mean --------------------------------------------------------------------------------------------


def sampler_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of ``SamplerChain.parse`` that the command line set, ``seed`` among them."""
    given = {_name(flags): getattr(args, _name(flags)) for flags, _, _ in _SAMPLING}
    given = {name: value for name, value in given.items() if value is not None}
    if args.dry_sequence_breaker is not None:
        given["dry_sequence_breakers"] = _breakers(args.dry_sequence_breaker, escape=args.escape)
    if args.logit_bias:
        given["logit_bias"] = args.logit_bias
    return given | {"seed": args.seed}


def _breakers(words: list[str], *, escape: bool) -> list[str]:
    """DRY's sequence breakers; ``none`` forgets those before it."""
    kept: list[str] = []
    for word in words:
        if word == "none":
            kept.clear()
        else:
            kept.append(process_escapes(word, "--dry-sequence-breaker") if escape else word)
    return kept


def overrides(args: argparse.Namespace, path: str | Path) -> dict[str, Scalar]:
    """The metadata overrides that ``--override-kv`` and the RoPE and YaRN flags stand for.

    The second kind needs the file's architecture, since it names the keys. Where both name one key, the flag
    must say the same as the override. Raises ArgumentError, or GGUFError for a file that is no GGUF.
    """
    from gristmill.metadata import parse_overrides

    explicit = parse_overrides(*args.override_kv)
    if all(getattr(args, name, None) is None for name in _ROPE_KEYS):
        return explicit
    from gristmill.gguf import GGUFFile

    with GGUFFile.open(path) as file:
        metadata = file.metadata.with_overrides(explicit)
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise GGUFError(f"{path}: key general.architecture is missing or no string")
        from_flags = rope_overrides(args, architecture, metadata)
    for key in explicit.keys() & from_flags.keys():
        if explicit[key] != from_flags[key]:
            raise ArgumentError(
                f"override {key}: given as {explicit[key]!r}, but a flag says {from_flags[key]!r}"
            )
    return explicit | from_flags


_ROPE_KEYS = {
    "rope_scaling": "rope.scaling.type",
    "rope_scale": "rope.scaling.factor",
    "rope_freq_scale": "rope.scaling.factor",
    "rope_freq_base": "rope.freq_base",
    "yarn_orig_ctx": "rope.scaling.original_context_length",
    "yarn_ext_factor": "rope.scaling.yarn_ext_factor",
    "yarn_attn_factor": "rope.scaling.attn_factor",
    "yarn_beta_fast": "rope.scaling.yarn_beta_fast",
    "yarn_beta_slow": "rope.scaling.yarn_beta_slow",
}


def rope_overrides(
    args: argparse.Namespace, architecture: str, metadata: Mapping[str, object]
) -> dict[str, Scalar]:
    """The RoPE and YaRN flags as metadata of ``architecture``.

    As in llama.cpp, 0 (or, for YaRN's floats, a negative number) stands for the file's own value, and a file
    that names no scaling type scales linearly. llama.cpp replaces the file's attention factor by ``--yarn-
    attn-factor`` and then discards it; here it takes the place of the file's factor, which multiplies YaRN's
    own.
    """
    if args.rope_scale is not None and args.rope_freq_scale:
        raise UsageError("--rope-scale and --rope-freq-scale say the same: give one of them")
    out: dict[str, Scalar] = {}

    def put(name: str, value: Scalar) -> None:
        out[f"{architecture}.{_ROPE_KEYS[name]}"] = value

    if args.rope_scaling is not None:
        put("rope_scaling", args.rope_scaling)
    if args.rope_freq_base:
        put("rope_freq_base", _above_zero("--rope-freq-base", args.rope_freq_base))
    if args.yarn_orig_ctx:
        put("yarn_orig_ctx", args.yarn_orig_ctx)
    for name in ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"):
        value = getattr(args, name)
        if value is not None and value >= 0:
            put(name, value)
    factor = args.rope_scale
    if args.rope_freq_scale:
        factor = 1.0 / _above_zero("--rope-freq-scale", args.rope_freq_scale)
    if factor is not None:
        put("rope_scale", factor)
        if args.rope_scaling is None and f"{architecture}.{_ROPE_KEYS['rope_scaling']}" not in metadata:
            put("rope_scaling", "linear")
    return out


def _above_zero(flag: str, value: float) -> float:
    if value <= 0:
        raise UsageError(f"argument {flag}: expected a number above 0, got {value!r}")
    return value
