"""Measuring an importance matrix: a model reads a text, and the squares of every matrix's inputs are summed.

The method is llama.cpp's (tools/imatrix): the text's tokens in chunks that do not overlap, each in a context
of its own, with a BOS token in the place of a chunk's first where the model wants one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gristmill.errors import ArgumentError, Error
from gristmill.imatrix import Channels, Imatrix
from gristmill.messages import printable
from gristmill.model import Model, load

DEFAULT_CHUNK = 512


def measure_imatrix(
    model: Model | str | os.PathLike[str],
    text: str,
    *,
    chunk_size: int = DEFAULT_CHUNK,
    n_chunks: int | None = None,
    process_output: bool = False,
    dataset: str = "",
    n_threads: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Imatrix:
    """Run ``text`` through a model and return what its matrices' input channels carry.

    Args:
        model: a file, or a loaded model, which is observed from now on, at the cost of some speed.
        chunk_size: tokens of a chunk.
        n_chunks: stop after so many; default, all that the text gives.
        process_output: the output matrix too (also as the token embedding, where they are tied). llama.cpp
            leaves it out by default, and so is it here.
        dataset: what to call the text in the file.
        progress: called with "imatrix", the chunks done, and all of them.

    Raises:
        ArgumentError: ``chunk_size`` or ``n_chunks`` below one.
        Error: the text is shorter than one chunk.
    """
    if chunk_size < 1 or (n_chunks is not None and n_chunks < 1):
        raise ArgumentError(f"chunks must have at least one token each, got {n_chunks} of {chunk_size}")
    if not isinstance(model, Model):
        model = load(model, device="cpu", n_ctx=chunk_size, n_threads=n_threads, precise=True)
    chunks = chunks_of(model, text, chunk_size, dataset or "the text")[:n_chunks]
    model.engine.observe()
    for i, chunk in enumerate(chunks):
        model.session().forward(chunk, all_logits=process_output)
        if progress is not None:
            progress("imatrix", i + 1, len(chunks))
    entries = {
        name: Channels(sums, np.array([n_tokens], np.float32))
        for name, n_tokens, sums in model.engine.input_squares()
        if process_output or name.startswith("blk.")
    }
    return Imatrix(entries, (dataset,), len(chunks), chunk_size, Path(dataset or "imatrix"))


def chunks_of(model: Model, text: str, chunk_size: int, source: str = "the text") -> list[Sequence[int]]:
    """A text's tokens in whole chunks. Raises Error where they fill none; ``source`` names it."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text, add_special=True)
    if len(ids) < chunk_size:
        raise Error(
            f"{printable(source)}: has {len(ids)} tokens of {printable(model.path.name)}, too few for one "
            f"chunk of {chunk_size}"
        )
    chunks: list[Sequence[int]] = []
    for first in range(0, len(ids) - chunk_size + 1, chunk_size):
        chunk = list(ids[first : first + chunk_size])
        if tokenizer.add_bos and tokenizer.bos_id is not None:
            chunk[0] = tokenizer.bos_id
        chunks.append(chunk)
    return chunks
