"""Flags of llama.cpp that gristmill takes without using them, and those it refuses.

A published command must run, so a flag that could only change speed or memory is taken, and its use is
reported. A flag that would change the answer is refused, since an answer without it would be the wrong one.
"""

from __future__ import annotations

import argparse

from gristmill.cli.flags import ON_OFF_AUTO
from gristmill.cli.parser import NoEffect, Parser, Refused

_OFF = frozenset({"off", "disabled", "false", "0"})
_BESIDE = "keys and values lie beside the weights of their layer"
_WHOLE_LAYERS = "a GPU has whole layers"
_NO_SHIFT = "a full context ends the answer, nothing is shifted out"
_ENGINE = "the engine chooses it"
_AFFINITY = "threads are placed by the operating system"
_NO_DRAFT = "speculative decoding is not built in"
_NO_LOG = "there is no log"

# flags, number of values, reason, values that ask for what happens anyway
_NO_EFFECT: tuple[tuple[tuple[str, ...], int, str, frozenset[str]], ...] = (
    (("-b", "--batch-size"), 1, f"the batch of prefill: {_ENGINE}", frozenset()),
    (("-ub", "--ubatch-size"), 1, f"the batch of prefill: {_ENGINE}", frozenset()),
    (("--keep",), 1, _NO_SHIFT, frozenset({"0", "-1"})),
    (("--context-shift",), 0, _NO_SHIFT, frozenset()),
    (("--swa-full",), 0, "no supported model has a sliding window", frozenset()),
    (("--mlock",), 0, "pages of the model file are never locked", frozenset()),
    (("--no-mmap",), 0, "the model file is always mapped", frozenset()),
    (("-dio", "--direct-io"), 0, "the model file is always mapped", frozenset()),
    (("-lm", "--load-mode"), 1, "the model file is always mapped", frozenset({"auto", "mmap"})),
    (("-lzm", "--lazy-mode"), 1, "the model file is always mapped", frozenset({"auto", "on"})),
    (("--warmup",), 0, "there is no warm-up run", frozenset()),
    (("--numa",), 1, _AFFINITY, frozenset()),
    (("-C", "--cpu-mask"), 1, _AFFINITY, frozenset()),
    (("-Cr", "--cpu-range"), 1, _AFFINITY, frozenset()),
    (("-Cb", "--cpu-mask-batch"), 1, _AFFINITY, frozenset()),
    (("-Crb", "--cpu-range-batch"), 1, _AFFINITY, frozenset()),
    (("--cpu-strict",), 1, _AFFINITY, _OFF),
    (("--cpu-strict-batch",), 1, _AFFINITY, _OFF),
    (("--prio-batch",), 1, "--prio holds for the whole process", frozenset({"0"})),
    (("--poll",), 1, f"how long idle threads spin: {_ENGINE}", frozenset()),
    (("--poll-batch",), 1, f"how long idle threads spin: {_ENGINE}", frozenset()),
    (("--repack",), 0, f"the layout of weights: {_ENGINE}", frozenset()),
    (("-nr", "--no-repack"), 0, f"the layout of weights: {_ENGINE}", frozenset()),
    (("--no-host",), 0, "weights are read from the mapped file", frozenset()),
    (("--check-tensors",), 0, "numbers are checked while the model runs", frozenset()),
    (("-kvo", "--kv-offload"), 0, _BESIDE, frozenset()),
    (("-ot", "--override-tensor"), 1, _WHOLE_LAYERS, frozenset()),
    (("-cmoe", "--cpu-moe"), 0, _WHOLE_LAYERS, frozenset()),
    (("-ncmoe", "--n-cpu-moe"), 1, _WHOLE_LAYERS, frozenset({"0"})),
    (("-fit", "--fit"), 1, "memory is taken as it is used", _OFF),
    (("-fitt", "--fit-target"), 1, "memory is taken as it is used", frozenset()),
    (("-fitc", "--fit-ctx"), 1, "memory is taken as it is used", frozenset()),
    (("--op-offload",), 0, _WHOLE_LAYERS, frozenset()),
    (("--rpc",), 1, "no remote back end is built in", frozenset()),
    (("-np", "--parallel"), 1, "one text is generated at a time", frozenset({"1", "-1"})),
    (("-dt", "--defrag-thold"), 1, "the KV cache has no holes", frozenset()),
    (("--prompt-cache",), 1, "prompts are not cached in files", frozenset()),
    (("--prompt-cache-all",), 0, "prompts are not cached in files", frozenset()),
    (("--prompt-cache-ro",), 0, "prompts are not cached in files", frozenset()),
    (("-cram", "--cache-ram"), 1, "one text is generated at a time", frozenset({"0"})),
    (
        ("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"),
        1,
        "any position can be gone back to",
        frozenset(),
    ),
    (("-ptc", "--print-token-count"), 1, "tokens are counted at the end", frozenset({"-1"})),
    (("-mli", "--multiline-input"), 0, 'begin and end several lines with """', frozenset()),
    (("-bs", "--backend-sampling"), 0, "sampling runs on the CPU", frozenset()),
    (("--no-jinja",), 0, "chat templates are always run as Jinja", frozenset()),
    (
        ("--reasoning-budget",),
        1,
        "thinking is not cut off; --reasoning off asks the template for none",
        frozenset({"-1"}),
    ),
    (("--log-file",), 1, _NO_LOG, frozenset()),
    (("--log-colors",), 1, _NO_LOG, frozenset()),
    (("--log-prefix",), 0, _NO_LOG, frozenset()),
    (("--log-timestamps",), 0, _NO_LOG, frozenset()),
    (("-md", "--model-draft", "--spec-draft-model"), 1, _NO_DRAFT, frozenset()),
    (("-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft"), 1, _NO_DRAFT, frozenset()),
    (("--draft", "--draft-n", "--draft-max"), 1, _NO_DRAFT, frozenset()),
    (("--draft-min", "--draft-n-min"), 1, _NO_DRAFT, frozenset()),
)

# Flags that ask for what happens anyway: no warning, and nothing to do.
_SATISFIED: tuple[tuple[str, ...], ...] = (
    ("--no-context-shift",),
    ("--no-warmup",),
    ("--mmap",),
    ("--jinja",),
    ("-nkvo", "--no-kv-offload"),
    ("--no-op-offload",),
    ("--no-log-prefix",),
    ("--no-log-timestamps",),
    ("--no-mmproj", "--no-mmproj-auto"),
)

_REFUSED: tuple[tuple[tuple[str, ...], int, str], ...] = (
    (("--grammar",), 1, "answers cannot be constrained yet"),
    (("--grammar-file",), 1, "answers cannot be constrained yet"),
    (("-j", "--json-schema"), 1, "answers cannot be constrained yet"),
    (("-jf", "--json-schema-file"), 1, "answers cannot be constrained yet"),
    (("--lora",), 1, "adapters are not built in"),
    (("--lora-scaled",), 1, "adapters are not built in"),
    (("--control-vector",), 1, "control vectors are not built in"),
    (("--control-vector-scaled",), 1, "control vectors are not built in"),
    (("--control-vector-layer-range",), 1, "control vectors are not built in"),
    (("-mm", "--mmproj"), 1, "models read text only"),
    (("--image", "--audio", "--video"), 1, "models read text only"),
    (("-hf", "-hfr", "--hf-repo"), 1, "fetch the file first and name it with --model"),
    (("-hff", "--hf-file"), 1, "fetch the file first and name it with --model"),
    (("-mu", "--model-url"), 1, "fetch the file first and name it with --model"),
    (("-dr", "--docker-repo"), 1, "fetch the file first and name it with --model"),
    (("--in-prefix",), 1, "the chat template sets off what you say; --chat-template gives another"),
    (("--in-suffix",), 1, "the chat template sets off what you say; --chat-template gives another"),
    (("--in-prefix-bos",), 0, "the chat template sets off what you say; --chat-template gives another"),
    (("-gan", "--grp-attn-n"), 1, "group attention is not built in"),
    (("-gaw", "--grp-attn-w"), 1, "group attention is not built in"),
    (("--adaptive-target",), 1, "the adaptive-p sampler is not built in"),
    (("--adaptive-decay",), 1, "the adaptive-p sampler is not built in"),
)


def add_foreign_flags(parser: Parser) -> None:
    """Adds all of them, hidden from ``--help``."""
    group = parser.add_argument_group()
    for flags, n_values, reason, harmless in _NO_EFFECT:
        group.add_argument(
            *flags,
            action=NoEffect,
            nargs=None if n_values else 0,
            reason=reason,
            harmless=harmless,
            help=argparse.SUPPRESS,
        )
    # Older releases took -fa without a value.
    group.add_argument(
        "-fa",
        "--flash-attn",
        action=NoEffect,
        nargs="?",
        choices=ON_OFF_AUTO,
        reason="there is one way of computing attention",
        harmless=frozenset({"auto", "-1"}),
        help=argparse.SUPPRESS,
    )
    for flags in _SATISFIED:
        group.add_argument(
            *flags, action=NoEffect, nargs=0, reason="", satisfied=True, help=argparse.SUPPRESS
        )
    for flags, n_values, reason in _REFUSED:
        nargs = None if n_values else 0
        group.add_argument(*flags, action=Refused, nargs=nargs, reason=reason, help=argparse.SUPPRESS)
