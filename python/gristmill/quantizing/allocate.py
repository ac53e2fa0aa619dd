"""A type for every matrix, so that the model's divergence is least within a size.

What a matrix costs in a type is modelled as its sensitivity times the type's relative error on it. Divergence
grows with the square of a small error, so one measured probe of each matrix gives the sensitivity for all
types. The sum over the matrices is then minimized exactly (:mod:`gristmill.quantizing.knapsack`).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gristmill.errors import ArgumentError, Error
from gristmill.gguf import GGUFFile
from gristmill.imatrix import Imatrix
from gristmill.imatrix_measure import chunks_of, measure_imatrix
from gristmill.messages import printable
from gristmill.model import load
from gristmill.quantize_file import quantize_file
from gristmill.quantizing.knapsack import solve
from gristmill.quantizing.mixes import MIXES, file_order, fits, may_quantize
from gristmill.quantizing.sensitivity import blocks_of, probe, shared_out
from gristmill.quantizing.weight_error import output_power, relative_errors, sample_rows

CANDIDATES = (
    "Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "F16",
)  # fmt: skip
"""The types among which a matrix gets one, as far as they can hold its rows."""

PROBE_TYPE = "Q4_0"  # what nearly every row can be held in, and coarse enough to stand out of rounding noise
METHODS = ("blocks", "tensors", "outputs", "weights")
WINDOW = 128  # tokens that are read in one context while probing


@dataclass(frozen=True, slots=True)
class Chosen:
    """One matrix: the type it gets, its bytes, and why.

    ``sensitivity`` is the mean divergence (nats) for a relative squared error of 1, as the probe tells;
    ``expected`` is the divergence that this matrix is expected to add in its type.
    """

    name: str
    type: str
    n_bytes: int
    sensitivity: float
    expected: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """What :func:`allocate` chose. ``expected`` and ``bound`` are the model's total divergence and a lower
    bound on that of every other choice in the budget; they are equal where optimality is proven."""

    types: dict[str, str]
    mix: str
    chosen: tuple[Chosen, ...]
    n_bytes: int
    budget: int
    expected: float
    bound: float
    by: str
    seconds: float


def allocate(
    source: str | os.PathLike[str],
    text: str,
    *,
    target_bytes: int | None = None,
    bits_per_weight: float | None = None,
    imatrix: Imatrix | None = None,
    by: str = "blocks",
    probe_tokens: int = 256,
    candidates: Sequence[str] = CANDIDATES,
    n_threads: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    text_name: str = "the text",
    progress: Callable[[str, int, int], None] | None = None,
) -> Allocation:
    """Choose a type for every matrix of ``source``.

    Args:
        text: what the model reads while it is measured; its beginning suffices.
        target_bytes: the most that the whole file may have. Or
        bits_per_weight: the most that all tensors together may have for each weight.
        imatrix: input channels' importances, which the file will be quantized with. Without one they are
            measured on ``text``, only to weigh errors with.
        by: what sensitivities rest on. "blocks": the model's divergence with each layer, and each kind of
            matrix over all layers, quantized alone. "tensors": the same with each matrix. "outputs",
            "weights": nothing is measured but the inputs' importance; what counts is the squared error of a
            matrix's outputs, or its ratio to their square. Then ``expected`` is that, and no divergence.
        probe_tokens: tokens of ``text`` on which divergence is measured.
        text_name: what messages call the text.
        folder: where the probes' quantized copy of the model lies meanwhile (default: the system's).

    Raises:
        ArgumentError: no budget, two, or one too small for the smallest types.
        Error: ``text`` is too short; ``source`` cannot be run.
    """
    start = time.monotonic()
    source = Path(source)
    if (target_bytes is None) == (bits_per_weight is None):
        raise ArgumentError("give either a size in bytes or bits per weight")
    if by not in METHODS:
        raise ArgumentError(f"by: expected {', '.join(METHODS)}, got {by!r}")
    with GGUFFile.open(source) as file:
        names = sorted((n for n, t in file.tensors.items() if may_quantize(n, t.shape)), key=file_order)
        budget = _budget(file, names, target_bytes, bits_per_weight)
        choices = {name: [t for t in candidates if fits(t, file.tensors[name].shape[-1])] for name in names}
        if not all(choices.values()):
            missing = next(name for name in names if not choices[name])
            raise ArgumentError(f"none of the candidate types can hold the rows of {missing}")
        sizes = {
            name: [n_bytes(file.tensors[name].n_elements, type) for type in choices[name]] for name in names
        }
        _check_budget(source, sizes, budget)
        windows = _windows(source, text, text_name, probe_tokens, n_threads)
        measured = imatrix or measure_imatrix(
            source, text, chunk_size=WINDOW, n_chunks=16, process_output=True, n_threads=n_threads,
            progress=progress,
        )  # fmt: skip
        probes = {
            name: PROBE_TYPE if fits(PROBE_TYPE, file.tensors[name].shape[-1]) else "F16" for name in names
        }
        errors: dict[str, list[float]] = {}
        probe_errors: dict[str, float] = {}
        power: dict[str, float] = {}
        for i, name in enumerate(names):
            tested = [*choices[name], probes[name]]
            rows, channels = sample_rows(file, file.tensors[name]), measured.channels(name)
            *errors[name], probe_errors[name] = relative_errors(
                rows, tested, channels, led=imatrix is not None
            )
            power[name] = output_power(rows, channels) * file.tensors[name].n_elements / rows.shape[1]
            if progress is not None:
                progress(f"errors of {name}", i + 1, len(names))
    if by in ("blocks", "tensors"):
        groups = blocks_of(names) if by == "blocks" else {name: [name] for name in names}
        with tempfile.TemporaryDirectory(dir=folder, prefix="gristmill-") as temporary:
            quantized = Path(temporary) / "probe.gguf"
            quantize_file(
                source,
                quantized,
                PROBE_TYPE,
                exact_types=probes,
                imatrix=imatrix,
                n_threads=n_threads,
                requantize=True,
            )
            harm = probe(source, quantized, groups, windows, n_threads=n_threads, progress=progress)
        if by == "blocks":
            harm = shared_out(names, harm, probe_errors)
        sensitivity = {n: harm[n] / probe_errors[n] if probe_errors[n] > 0 else 0.0 for n in names}
    else:
        sensitivity = power if by == "outputs" else dict.fromkeys(names, 1.0)
    costs = [[sensitivity[name] * e for e in errors[name]] for name in names]
    solution = solve([sizes[name] for name in names], costs, budget)
    chosen = tuple(
        Chosen(name, choices[name][k], sizes[name][k], sensitivity[name], costs[i][k])
        for i, (name, k) in enumerate(zip(names, solution.picks, strict=True))
    )
    types = {c.name: c.type for c in chosen}
    return Allocation(
        types, _nearest_mix(chosen), chosen, solution.size, budget, solution.cost, solution.bound, by,
        time.monotonic() - start,
    )  # fmt: skip


def n_bytes(n_weights: int, type: str) -> int:
    """Bytes of a tensor in the file, with the padding behind it."""
    from gristmill.quants import format_named

    return -(-format_named(type).row_bytes(n_weights) // 32) * 32


def _budget(file: GGUFFile, names: Sequence[str], target_bytes: int | None, bits: float | None) -> int:
    """Bytes for the matrices: what the target leaves after the header and all that stays as it is."""
    matrices = set(names)
    kept = sum(-(-t.n_bytes // 32) * 32 for n, t in file.tensors.items() if n not in matrices)
    if target_bytes is not None:
        header = min(t.offset for t in file.tensors.values() if t.file_index == 0)
        return target_bytes - kept - header - 4096  # a few keys are added
    assert bits is not None
    return int(bits * sum(t.n_elements for t in file.tensors.values()) / 8) - kept


def _check_budget(source: Path, sizes: dict[str, list[int]], budget: int) -> None:
    least = sum(map(min, sizes.values()))
    if budget < least:
        raise ArgumentError(
            f"{printable(str(source))}: the size asked for leaves {max(0, budget)} bytes for the matrices, "
            f"but in their smallest types they take {least}"
        )


def _windows(
    source: Path, text: str, name: str, probe_tokens: int, n_threads: int | None
) -> list[Sequence[int]]:
    model = load(source, n_ctx=WINDOW, n_threads=n_threads, precise=True)
    chunks = chunks_of(model, text, WINDOW, name)[: max(1, probe_tokens // WINDOW)]
    if len(chunks) * WINDOW < probe_tokens - WINDOW:
        raise Error(
            f"{printable(name)}: gives {len(chunks) * WINDOW} tokens, too few to measure on {probe_tokens}"
        )
    return chunks


def _nearest_mix(chosen: Sequence[Chosen]) -> str:
    """The mix whose base format holds the most bytes: the name that the file's general.file_type gets."""
    totals: dict[str, int] = {}
    for c in chosen:
        totals[c.type] = totals.get(c.type, 0) + c.n_bytes
    most = max(totals, key=lambda type: totals[type])
    named = [mix for mix, (base, _) in MIXES.items() if base == most]
    return next((mix for mix in named if mix.endswith("_M")), named[0])
