"""Writes a model of any shape and format mix from random valid blocks: a gigabyte takes a few seconds.

    python benchmarks/make_model.py qwen2-1.5b --formats Q4_K_M --output q4_k_m.gguf
    python benchmarks/make_model.py qwq-32b --formats Q8_0 --vocab QwQ-32B-Q4_K_M.gguf --output q8_0.gguf
    python benchmarks/make_model.py smollm2-135m --n-layer 4 --formats Q5_1 --pure --output small.gguf

The weights have the spread that keeps activations near one through any number of layers. Speed depends on
shapes and formats alone, so such a file is as good as a real one for measuring it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))

from gristmill.quantizing.mixes import ALIASES, MIXES, ModelFacts, choose_types, find_mix
from oracle.build import Spec, build, matrices

PRESETS = {
    "qwen2-1.5b": Spec(
        arch="qwen2", n_layer=28, n_embd=1536, n_head=12, n_head_kv=2, n_ff=8960, n_vocab=151936,
        n_ctx=32768, tied=True, rope_base=1e6,
    ),
    "qwq-32b": Spec(
        arch="qwen2", n_layer=64, n_embd=5120, n_head=40, n_head_kv=8, n_ff=27648, n_vocab=152064,
        n_ctx=131072, rope_base=1e6, rms_eps=1e-5,
    ),
    "smollm2-135m": Spec(
        arch="llama", n_layer=30, n_embd=576, n_head=9, n_head_kv=3, n_ff=1536, n_vocab=49152,
        n_ctx=8192, tied=True, rope_base=1e5, rms_eps=1e-5, tokenizer_pre="smollm",
    ),
}  # fmt: skip


def formats_of(mix: str, spec: Spec, pure: bool = False) -> dict[str, str]:
    """Format of every matrix, as in published files of that name; ``pure``: the base format where it fits."""
    shapes = {f"{name}.weight": (n_rows, n_cols) for name, n_rows, n_cols in matrices(spec)}
    facts = ModelFacts(spec.arch, spec.n_layer, spec.n_head, spec.n_head_kv)
    chosen = choose_types(shapes, find_mix(mix), facts, pure=pure)
    return {name.removesuffix(".weight"): choice.type for name, choice in chosen.items()}


def copy_tokenizer(source: Path, n_vocab: int) -> Callable[[gguf.GGUFWriter], None]:
    """Takes the keys ``tokenizer.*`` of a GGUF file; its vocabulary is padded to ``n_vocab``."""
    fields = gguf.GGUFReader(source).fields
    n_tokens = len(fields["tokenizer.ggml.tokens"].data)
    if n_tokens > n_vocab:
        raise SystemExit(f"make_model: {source}: {n_tokens} tokens do not fit n_vocab {n_vocab}")
    padding = {
        "tokenizer.ggml.tokens": [f"[PAD{i}]" for i in range(n_tokens, n_vocab)],
        "tokenizer.ggml.token_type": [int(gguf.TokenType.UNUSED)] * (n_vocab - n_tokens),
        "tokenizer.ggml.scores": [0.0] * (n_vocab - n_tokens),
    }

    def add(writer: gguf.GGUFWriter) -> None:
        for key, field in fields.items():
            if key.startswith("tokenizer."):
                value = field.contents()
                if key in padding:
                    value = value + padding[key]
                sub_type = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(key, value, field.types[0], sub_type)

    return add


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("preset", choices=PRESETS, help="shape to start from")
    parser.add_argument("--output", "-o", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--formats", default="Q4_K_M", choices=[*MIXES, *ALIASES], metavar="MIX",
        help="a format, or a mix with llama.cpp's choice for each tensor (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--pure", action="store_true", help="one format everywhere, the output matrix too")
    parser.add_argument(
        "--vocab", type=Path, help="GGUF file to take the tokenizer from (default: synthetic)"
    )
    parser.add_argument("--seed", type=int, default=0)
    for field in dataclasses.fields(Spec):
        if field.name.startswith("n_") or field.name == "head_dim":
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, help="instead of the preset's")
    parser.add_argument(
        "--tied", action=argparse.BooleanOptionalAction, help="output matrix = token embedding"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    given = {key: value for key, value in vars(args).items() if value is not None}
    fields = {field.name for field in dataclasses.fields(Spec)} - {"formats"}
    spec = dataclasses.replace(PRESETS[args.preset], **{k: v for k, v in given.items() if k in fields})
    more = {"general.file_type": MIXES[find_mix(args.formats)].file_type}
    spec = dataclasses.replace(spec, formats=formats_of(args.formats, spec, args.pure), metadata=more)
    tokenizer = copy_tokenizer(args.vocab, spec.n_vocab) if args.vocab else None
    start = time.perf_counter()
    build(args.output, spec, tokenizer)
    seconds = time.perf_counter() - start
    size = args.output.stat().st_size
    print(f"{args.output}: {size / 1e9:.2f} GB in {seconds:.1f} s")


if __name__ == "__main__":
    main()
