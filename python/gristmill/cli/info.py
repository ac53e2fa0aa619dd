"""``gristmill info``: what a GGUF file holds, and the memory that running it takes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.cli import add_command, output
from gristmill.cli.flags import add_memory_flags, add_override_flags
from gristmill.cli.inputs import model_path
from gristmill.cli.parser import UsageError

if TYPE_CHECKING:
    from gristmill.info import ModelInfo

Section = tuple[str, list[tuple[str, str]]]


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds ``info``'s flags."""
    parser = add_command(
        subparsers,
        "info",
        usage="gristmill info [flags] FILE",
        description="Shows what a GGUF file holds and the memory that running it takes. No tensor is read.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="GGUF file, or any part of a split one")
    parser.add_argument("-m", "--model", metavar="FILE", help="the same as FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--devices", action="store_true", help="show what models can run on instead")
    add_memory_flags(parser)
    add_override_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the description and returns the exit status. A truncated file is described, with a warning."""
    if args.devices:
        from gristmill.cli.devices import print_devices

        return print_devices()
    if args.file is not None and args.model is not None:
        raise UsageError("two files are given, FILE and --model")
    args.model = args.file if args.model is None else args.model
    if args.model is None:
        raise UsageError("no file is given: gristmill info FILE")
    from gristmill.gguf import GGUFFile
    from gristmill.info import describe
    from gristmill.metadata import parse_overrides

    overrides = parse_overrides(*args.override_kv)
    with GGUFFile.open(Path(model_path(args)), check_extents=False) as file:
        info = describe(file, args.ctx_size or None, overrides)
    if args.json:
        print(json.dumps(_plain(info, args), indent=2, ensure_ascii=True))
    elif sys.stdout.isatty():
        _print_tables(sections(info, args.cache_type_k, args.cache_type_v))
    else:
        _print_plain(sections(info, args.cache_type_k, args.cache_type_v))
    if info.truncated is not None:
        sys.stdout.flush()
        output.tell("warning", info.truncated)
    return 0


def _plain(info: ModelInfo, args: argparse.Namespace) -> dict[str, Any]:
    """The description for JSON, with the memory at the types of cache that were asked for."""
    plain = info.to_dict()
    if info.memory is not None:
        cache = _cache_bytes(info, args.cache_type_k, args.cache_type_v)
        plain["memory"] |= {"cache": cache, "total": info.memory.weights + cache}
    return plain


def sections(info: ModelInfo, cache_type_k: str, cache_type_v: str) -> list[Section]:
    """The description as titled lists of (label, value); what the file does not say is left out."""
    all_sections = [
        ("File", _file(info)),
        ("Model", _model(info)),
        ("Formats", _formats(info)),
        ("Context", _context(info)),
        ("Tokenizer", _tokenizer(info)),
        ("Memory", _memory(info, cache_type_k, cache_type_v)),
    ]
    return [(title, rows) for title, rows in all_sections if rows]


def _rows(*pairs: tuple[str, object]) -> list[tuple[str, str]]:
    return [(label, output.one_line(_show(value))) for label, value in pairs if value is not None]


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _file(info: ModelInfo) -> list[tuple[str, str]]:
    return _rows(
        *(("path", path) for path in info.paths),
        ("size", size(info.file_bytes)),
        ("GGUF version", info.gguf_version),
        ("tensors", info.n_tensors),
    )


def _model(info: ModelInfo) -> list[tuple[str, str]]:
    heads = None
    if info.n_head is not None:
        heads = f"{info.n_head} query, {info.n_head_kv} key-value, of size {info.head_size_k}"
    return _rows(
        ("name", info.name),
        ("architecture", info.architecture),
        ("parameters", _parameters(info.n_parameters) if info.n_parameters else None),
        ("file type", info.file_type),
        ("layers", info.n_layer),
        ("embedding", info.n_embd),
        ("feed-forward", info.n_ff),
        ("heads", heads),
        ("vocabulary", info.n_vocab),
    )


def _formats(info: ModelInfo) -> list[tuple[str, str]]:
    return [
        (
            use.format,
            f"{use.n_tensors} {'tensor' if use.n_tensors == 1 else 'tensors'}, "
            f"{_parameters(use.n_parameters)} parameters, {size(use.n_bytes)}, "
            f"{8 * use.n_bytes / max(use.n_parameters, 1):.2f} bits each",
        )
        for use in info.formats
    ]


def _context(info: ModelInfo) -> list[tuple[str, str]]:
    rope = info.rope
    scaling = None
    if rope.scaling_type is not None or rope.scaling_factor is not None:
        scaling = rope.scaling_type or "linear"
        details = [
            ("factor", rope.scaling_factor),
            ("of", rope.original_context_length),
            ("attention factor", rope.attn_factor),
            ("beta fast", rope.yarn_beta_fast),
            ("beta slow", rope.yarn_beta_slow),
        ]
        scaling += "".join(f", {label} {_show(value)}" for label, value in details if value is not None)
    return _rows(
        ("length", info.context_length),
        ("RoPE base", rope.freq_base),
        ("RoPE dimensions", rope.dimension_count),
        ("RoPE scaling", scaling or ("none" if info.n_layer is not None else None)),
    )


def _tokenizer(info: ModelInfo) -> list[tuple[str, str]]:
    t = info.tokenizer
    named = {
        "BOS": t.bos_id,
        "EOS": t.eos_id,
        "EOT": t.eot_id,
        "unknown": t.unknown_id,
        "padding": t.padding_id,
    }
    special = ", ".join(f"{name} {token}" for name, token in named.items() if token is not None)
    return _rows(
        ("model", t.model),
        ("pre-tokenizer", t.pre),
        ("tokens", t.n_tokens),
        ("special", special or None),
        ("adds BOS", t.add_bos),
        ("chat template", "with thinking" if info.has_thinking else info.has_chat_template),
    )


def _cache_bytes(info: ModelInfo, cache_type_k: str, cache_type_v: str) -> int:
    """Bytes of the KV cache with keys and values of these types. ``memory`` has them for one type of both."""
    assert info.memory is not None
    k, v = info.head_size_k or 1, info.head_size_v or 1
    of_keys, of_values = info.memory.kv_cache[cache_type_k], info.memory.kv_cache[cache_type_v]
    return (of_keys * k + of_values * v) // (k + v)


def _memory(info: ModelInfo, cache_type_k: str, cache_type_v: str) -> list[tuple[str, str]]:
    if info.memory is None:
        return []
    cache = _cache_bytes(info, cache_type_k, cache_type_v)
    return _rows(
        ("weights", f"{size(info.memory.weights)}, mapped from the file"),
        (f"KV cache, {info.memory.n_ctx} tokens", f"{size(cache)} when full ({cache_type_k}/{cache_type_v})"),
        ("together", size(info.memory.weights + cache)),
    )


def size(n: int) -> str:
    """A number of bytes as a person reads it."""
    value, unit = float(n), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{n} B" if unit == "B" else f"{value:.2f} {unit}"


def _parameters(n: int) -> str:
    for factor, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= factor:
            return f"{n / factor:.2f} {letter}"
    return str(n)


def _print_plain(all_sections: list[Section]) -> None:
    width = max(len(label) for _, rows in all_sections for label, _ in rows)
    for title, rows in all_sections:
        print(title)
        for label, value in rows:
            print(f"  {label:<{width}}  {value}")


def _print_tables(all_sections: list[Section]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    for title, rows in all_sections:
        table.add_row(Text(title, style="bold"), "")
        for label, value in rows:
            table.add_row(Text("  " + label, style="dim"), Text(value))
    Console().print(table)
