"""Several files of one model against a base: what each costs in size, speed and truth.

The stages: formats are quantized into the cache, speeds measured alternately, divergences measured over a
text with the models side by side, and continuations watched for loops. Everything but the speeds is the same
in every run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gristmill.errors import ArgumentError
from gristmill.gguf import GGUFFile
from gristmill.info import describe
from gristmill.lab.divergences import DivergenceResult, check_same_vocabulary, divergence
from gristmill.lab.formats import check_formats, quantized
from gristmill.lab.prompts import PROMPTS
from gristmill.lab.repetition import (
    DEFAULT_SEED,
    DEFAULT_TOKENS,
    LoopResult,
    check_loop_settings,
    loops,
    prompt_ids,
)
from gristmill.lab.score import PerplexityResult
from gristmill.lab.speed import SpeedResult, check_speed_settings, speeds
from gristmill.lab.text import TextWindows, cut
from gristmill.machine import available_memory
from gristmill.messages import file_error
from gristmill.model import Model, load
from gristmill.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]
"""Called with what runs now, the steps of it that are done, and all there are."""

# Of the memory that is free, what weights that run side by side may take; the rest is for logits and caches.
_MEMORY_SHARE = 0.75


@dataclass(frozen=True)
class ModelRow:
    """One line of the comparison; the first is the base itself. Sizes are bytes, divergences nats.

    Loop rates are None where loops were left out, speeds where they were not measured.
    """

    name: str
    path: str
    format: str
    file_bytes: int
    bits_per_weight: float
    memory_bytes: int
    """Weights, and an f16 KV cache of ``memory_ctx`` positions."""
    load_seconds: float | None
    prefill_tps: float | None
    decode_tps: float | None
    perplexity: float
    perplexity_stderr: float
    mean_kl: float
    mean_kl_stderr: float
    p99_kl: float
    max_kl: float
    top1_agreement: float
    greedy_loop_rate: float | None
    sampled_loop_rate: float | None


@dataclass(frozen=True)
class Settings:
    """What the figures depend on, besides files and machine."""

    text: str
    text_sha256: str
    n_ctx: int
    n_windows: int
    n_scored: int
    memory_ctx: int
    n_prompt: int
    n_decode: int
    rounds: int
    n_loop_prompts: int
    loop_tokens: int
    seed: int
    n_threads: int
    isa: str


@dataclass(frozen=True)
class CompareResult:
    """``rows``, base first, and all that they sum up; ``pandas.DataFrame(result.rows)`` is the table."""

    rows: tuple[ModelRow, ...]
    settings: Settings
    base_scores: PerplexityResult = field(repr=False)
    divergences: tuple[DivergenceResult, ...] = field(repr=False)
    speeds: tuple[SpeedResult, ...] = field(repr=False)
    loops: tuple[LoopResult, ...] = field(repr=False)

    @property
    def base(self) -> ModelRow:
        """The base's row."""
        return self.rows[0]


@dataclass(frozen=True)
class _File:
    """What a file says about itself."""

    path: Path
    format: str
    file_bytes: int
    tensor_bytes: int
    n_parameters: int
    memory_bytes: int


def compare(
    base: str | os.PathLike[str],
    models: Sequence[str | os.PathLike[str]] = (),
    *,
    text: str,
    formats: Sequence[str] = (),
    requantize: bool = False,
    imatrix: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    n_ctx: int = 512,
    n_windows: int | None = None,
    memory_ctx: int = 4096,
    n_prompt: int = 512,
    n_decode: int = 32,
    rounds: int = 3,
    prompts: Sequence[str] = PROMPTS,
    loop_tokens: int = DEFAULT_TOKENS,
    seed: int = DEFAULT_SEED,
    n_threads: int | None = None,
    source: str = "text",
    progress: Progress | None = None,
) -> CompareResult:
    """Measure ``models`` and ``base`` in ``formats`` against ``base``.

    Args:
        base: The file that the others are measured from.
        models: Files with the same vocabulary.
        text: What divergence and perplexity are measured over; at least one window of it.
        formats: Mixes such as "Q4_K_M", into which ``base`` is quantized, in the cache.
        requantize: Whether a base that is quantized itself may be quantized again.
        imatrix: For quantizing, as in :func:`gristmill.quantize_file.quantize_file`.
        cache: Folder for quantized files; by default in the user's cache.
        n_ctx: Tokens of a window.
        n_windows: Windows to use at most; None for all.
        memory_ctx: Positions that the memory column is for.
        n_prompt: Tokens of the measured prefill.
        n_decode: Tokens of the measured decoding.
        rounds: Rounds of speed measurements; 0 leaves them out.
        prompts: What is continued to find loops; see :mod:`gristmill.lab.repetition`.
        loop_tokens: Tokens of a continuation at most; 0 leaves loops out.
        seed: Of the sampled continuations.
        n_threads: Threads that compute; the physical cores by default.
        source: What messages call the text.
        progress: Told about each step.

    Raises:
        ArgumentError: Nothing to compare, an unknown format, a file given twice, a senseless number.
        Error: A file cannot be loaded or has another vocabulary, the text is too short for one window, or
            logits are not finite.
        OSError: The cache cannot be written.
    """
    tell = progress or (lambda what, done, total: None)
    names = check_formats(formats)
    paths = [Path(base), *map(Path, models)]
    if len(paths) + len(names) < 2:
        raise ArgumentError("nothing to compare: name more files, or formats to quantize the base into")
    _check_given_once(paths)
    # Whatever can be refused is refused before any time is spent.
    if loop_tokens:
        check_loop_settings(prompts, loop_tokens)
    if rounds < 0:
        raise ArgumentError(f"rounds, expected at least 0, got {rounds}")
    if rounds:
        check_speed_settings(n_prompt, n_decode, rounds)
    tokenizer = Tokenizer.from_gguf(paths[0])
    for path in paths[1:]:
        check_same_vocabulary(tokenizer, paths[0], Tokenizer.from_gguf(path), path)
    windows = cut(tokenizer, text, n_ctx, n_windows, source)
    for path in paths:
        _describe(path, memory_ctx)
    for i, name in enumerate(names):
        paths.append(
            quantized(
                paths[0],
                name,
                requantize=requantize,
                imatrix=None if imatrix is None else Path(imatrix),
                n_threads=n_threads,
                cache=None if cache is None else Path(cache),
                progress=lambda what, done, total, i=i: tell(  # type: ignore[misc]
                    f"quantizing {what}", i * total + done, len(names) * total
                ),
            )
        )
    files = [_describe(path, memory_ctx) for path in paths]
    labels = _labels(files)
    timed = (
        speeds(paths, n_prompt, n_decode, rounds, n_threads, lambda what, i, n: tell(f"speed: {what}", i, n))
        if rounds
        else []
    )
    base_scores, divergences, model = _divergences(files, windows, n_threads, tell)
    found = list(_loops(paths, prompts, loop_tokens, seed, n_threads, tell)) if loop_tokens else []
    settings = Settings(
        text=source,
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        n_ctx=n_ctx,
        n_windows=windows.n_windows,
        n_scored=windows.n_scored,
        memory_ctx=memory_ctx,
        n_prompt=n_prompt,
        n_decode=n_decode,
        rounds=rounds,
        n_loop_prompts=len(prompts) if found else 0,
        loop_tokens=loop_tokens if found else 0,
        seed=seed,
        n_threads=model.n_threads,
        isa=model.isa,
    )
    rows = [
        _row(
            labels[i],
            files[i],
            base_scores if i == 0 else divergences[i - 1].scores,
            None if i == 0 else divergences[i - 1],
            timed[i] if timed else None,
            found[i] if found else None,
        )
        for i in range(len(files))
    ]
    return CompareResult(tuple(rows), settings, base_scores, tuple(divergences), tuple(timed), tuple(found))


def _row(
    name: str,
    file: _File,
    scores: PerplexityResult,
    against: DivergenceResult | None,
    speed: SpeedResult | None,
    looped: LoopResult | None,
) -> ModelRow:
    return ModelRow(
        name=name,
        path=str(file.path),
        format=file.format,
        file_bytes=file.file_bytes,
        bits_per_weight=8 * file.tensor_bytes / file.n_parameters,
        memory_bytes=file.memory_bytes,
        load_seconds=speed.load_seconds if speed else None,
        prefill_tps=speed.prefill_tps if speed else None,
        decode_tps=speed.decode_tps if speed else None,
        perplexity=scores.perplexity,
        perplexity_stderr=scores.stderr,
        mean_kl=against.mean_kl if against else 0.0,
        mean_kl_stderr=against.mean_kl_stderr if against else 0.0,
        p99_kl=against.p99_kl if against else 0.0,
        max_kl=against.max_kl if against else 0.0,
        top1_agreement=against.top1_agreement if against else 1.0,
        greedy_loop_rate=looped.greedy_rate if looped else None,
        sampled_loop_rate=looped.sampled_rate if looped else None,
    )


def _check_given_once(paths: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in paths:
        same = seen.setdefault(path.resolve(), path)
        if same is not path:
            raise ArgumentError(f"{path}: is given twice")


def _describe(path: Path, memory_ctx: int) -> _File:
    with GGUFFile.open(path) as file:
        info = describe(file, memory_ctx)
        if info.memory is None:
            raise file_error(path, "is no model: it has no tensors, or lacks the sizes of its layers")
        return _File(
            path=path,
            format=info.file_type or (info.formats[0].format if info.formats else "unknown"),
            file_bytes=info.file_bytes,
            tensor_bytes=sum(t.n_bytes for t in file.tensors.values()),
            n_parameters=info.n_parameters,
            memory_bytes=info.memory.weights + info.memory.kv_cache["f16"],
        )


def _labels(files: Sequence[_File]) -> list[str]:
    """Formats where they tell the files apart, otherwise file names without what they all begin with."""
    formats = [file.format for file in files]
    if len(set(formats)) == len(files):
        return formats
    names = [file.path.name.removesuffix(".gguf") for file in files]
    if len(set(names)) < len(names):
        return [str(file.path) for file in files]
    common = len(os.path.commonprefix(names))  # noqa: RUF071  characters, not folders, are meant
    short = [name[common:].lstrip("-_. ") for name in names]
    return short if all(short) else names


def _divergences(
    files: Sequence[_File], windows: TextWindows, n_threads: int | None, tell: Progress
) -> tuple[PerplexityResult, list[DivergenceResult], Model]:
    """The base's scores, each model's divergence, and the base loaded.

    All models run side by side if their weights fit in memory together; otherwise some at a time, the base
    again with each of these groups, which changes no figure.
    """
    base = load(files[0].path, n_ctx=windows.n_ctx, n_threads=n_threads, precise=True)
    groups = _groups([file.tensor_bytes for file in files])
    results: list[DivergenceResult] = []
    for i, group in enumerate(groups):
        models = [load(files[k].path, n_ctx=windows.n_ctx, n_threads=n_threads, precise=True) for k in group]

        def show(done: int, total: int, i: int = i) -> None:
            tell("divergence", i * total + done, len(groups) * total)

        show(0, windows.n_windows)
        scores, some = divergence(base, models, windows, progress=show)
        results += some
    return scores, results, base


def _groups(sizes: Sequence[int]) -> list[list[int]]:
    """Indices 1, 2, ... in groups of which each fits in memory beside the base, which is ``sizes[0]``."""
    available = available_memory()
    budget = None if available is None else available * _MEMORY_SHARE - sizes[0]
    groups: list[list[int]] = []
    taken = 0
    for i, size in enumerate(sizes[1:], 1):
        if not groups or (budget is not None and taken + size > budget):
            groups.append([])
            taken = 0
        groups[-1].append(i)
        taken += size
    return groups


def _loops(
    paths: Sequence[Path],
    prompts: Sequence[str],
    n_tokens: int,
    seed: int,
    n_threads: int | None,
    tell: Progress,
) -> Iterator[LoopResult]:
    """Every model gets the tokens that the base's template makes of the prompts."""
    ids: list[list[int]] = []
    for i, path in enumerate(paths):
        if not ids:
            base = load(path, n_ctx=1, n_threads=n_threads, precise=True)
            ids = [prompt_ids(base, prompt) for prompt in prompts]
        model = load(path, n_ctx=max(map(len, ids)) + n_tokens, n_threads=n_threads, precise=True)

        def show(done: int, total: int, i: int = i, path: Path = path) -> None:
            tell(f"loops: {path.name}", i * total + done, len(paths) * total)

        yield loops(model, ids, n_tokens, seed, show)
