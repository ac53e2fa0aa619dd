"""The plan of a conversion: the type of every tensor, decided and checked before a byte is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gristmill.errors import ArgumentError, UnsupportedModelError
from gristmill.gguf import GGUFFile, TensorInfo
from gristmill.gguf_writer import NewTensor
from gristmill.messages import printable, quoted
from gristmill.metadata import Metadata
from gristmill.quantizing.mixes import (
    FLOATS,
    MIXES,
    Choice,
    ModelFacts,
    choose_types,
    find_mix,
    find_type,
    fits,
    may_quantize,
)
from gristmill.quants import formats


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may ask for besides the mix; see :func:`gristmill.quantize_file.quantize_file`."""

    tensor_types: tuple[tuple[str, str], ...] = ()
    exact_types: Mapping[str, str] = field(default_factory=dict)
    output_type: str | None = None
    embedding_type: str | None = None
    leave_output: bool = False
    pure: bool = False
    requantize: bool = False


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the plan: where it is, what it becomes and why (:class:`Choice`'s reasons)."""

    source: TensorInfo
    new: NewTensor
    reason: str

    @property
    def converts(self) -> bool:
        """Whether its type changes; otherwise its bytes are copied."""
        return self.source.type != self.new.type


def parse_tensor_types(given: Iterable[str | tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """``PATTERN=TYPE`` as (pattern, type), checked. A pattern is a regular expression that a name contains.

    Raises ArgumentError for a missing half, a pattern that is no regular expression, and an unknown type.
    """
    pairs: list[tuple[str, str]] = []
    for item in given:
        pattern, equals, type = item.rpartition("=") if isinstance(item, str) else (item[0], "=", item[1])
        if not (pattern and equals and type):
            raise ArgumentError(f"tensor type {item!r}: expected PATTERN=TYPE, for example ffn_down=Q6_K")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ArgumentError(
                f"tensor type {item!r}: {pattern!r} is no regular expression: {error}"
            ) from None
        pairs.append((pattern, find_type(type)))
    return tuple(pairs)


def model_facts(metadata: Metadata) -> ModelFacts:
    """What the mixes' rules look at. Files without these keys (no language models) get neutral facts."""
    arch = metadata.get_str("general.architecture", "")

    def number(key: str, default: int) -> int:
        value = metadata.get(f"{arch}.{key}", default)
        first = value[0] if isinstance(value, list) and value else value  # a number a layer
        return first if isinstance(first, int) else default

    n_head = number("attention.head_count", 1)
    return ModelFacts(
        arch=arch,
        n_layer=number("block_count", 0),
        n_head=n_head,
        n_head_kv=number("attention.head_count_kv", n_head),
        n_expert=number("expert_count", 0),
    )


def make_plan(
    file: GGUFFile, mix: str, options: Options, *, has_imatrix: bool = False
) -> list[PlannedTensor]:
    """Every tensor of ``file`` with its type to be, in the order of the new file.

    Raises ArgumentError where an asked-for type cannot hold a tensor's rows or a pattern names no tensor, and
    UnsupportedModelError where a tensor would have to be requantized or is in a format that cannot be read.
    """
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    overrides = _overrides(file.path, shapes, options)
    mix = find_mix(mix)
    choices = choose_types(
        shapes,
        mix,
        model_facts(file.metadata),
        has_imatrix=has_imatrix,
        pure=options.pure,
        overrides=overrides,
    )
    plan: list[PlannedTensor] = []
    for name, choice in choices.items():
        source = file.tensors[name]
        type = choice.type or source.type
        _check(file, source, type, choice, options)
        plan.append(PlannedTensor(source, NewTensor(name, source.shape, type), choice.reason))
    return plan


def _overrides(path: Path, shapes: Mapping[str, tuple[int, ...]], options: Options) -> dict[str, str]:
    matrices = [name for name, shape in shapes.items() if may_quantize(name, shape)]
    chosen: dict[str, str] = {}
    for pattern, type in reversed(options.tensor_types):  # the first that matches wins
        matching = [name for name in matrices if re.search(pattern, name)]
        if not matching:
            raise ArgumentError(f"{printable(str(path))}: --tensor-type {pattern}={type} matches no tensor")
        chosen.update(dict.fromkeys(matching, type))
    tied = "output.weight" not in shapes
    if options.embedding_type and "token_embd.weight" in matrices:
        chosen["token_embd.weight"] = find_type(options.embedding_type)
    output = "token_embd.weight" if tied else "output.weight"
    if options.output_type and output in matrices and not (tied and options.embedding_type):
        chosen[output] = find_type(options.output_type)
    if options.leave_output and not tied:
        chosen["output.weight"] = ""
    chosen.update(options.exact_types)
    return chosen


def _check(file: GGUFFile, source: TensorInfo, type: str, choice: Choice, options: Options) -> None:
    where = f"{printable(str(file.paths[source.file_index]))}: tensor {quoted(source.name)}"
    if source.type == type:
        return
    if not fits(type, source.shape[-1]):
        raise ArgumentError(
            f"{where} has rows of {source.shape[-1]} weights, which {type} cannot hold: its blocks are of "
            f"{next(f.block_size for f in formats() if f.name == type)}"
        )
    if source.type not in {mix.base for mix in MIXES.values()}:
        raise UnsupportedModelError(f"{where} is in {source.type}, which cannot be converted")
    if source.type not in FLOATS and not options.requantize:
        raise UnsupportedModelError(
            f"{where} is already quantized ({source.type}); --requantize converts it all the same, "
            "at the price of a second rounding"
        )
