"""Importance matrices: how much each input channel of a matrix counts, measured as mean squared activations.

The files are llama.cpp's: a GGUF with two tensors for each matrix, ``NAME.in_sum2`` (sums of squared inputs,
[n_matrices, n_cols]; one matrix but for mixtures of experts) and ``NAME.counts`` (tokens summed,
[n_matrices, 1]). Source: llama.cpp, tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gristmill.errors import GGUFError, GristmillWarning
from gristmill.gguf import GGUFFile, TensorInfo
from gristmill.gguf_writer import GGUFWriter, NewTensor, encode_value
from gristmill.messages import file_error, printable, quoted
from gristmill.quantizing.mixes import file_order, layer_of, may_quantize

_SUMS, _COUNTS = ".in_sum2", ".counts"
_KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")


@dataclass(frozen=True, slots=True)
class Channels:
    """``sums``: float32 [n_matrices, n_cols], of squared inputs; ``counts``: float32 [n_matrices], tokens."""

    sums: npt.NDArray[np.float32]
    counts: npt.NDArray[np.float32]

    def mean(self, matrix: int = 0) -> npt.NDArray[np.float32]:
        """Mean squared inputs, float32 [n_cols]; ones for a matrix that no token has reached."""
        count = self.counts[min(matrix, len(self.counts) - 1)]
        if not count > 0:
            return np.ones(self.sums.shape[1], np.float32)
        mean: npt.NDArray[np.float32] = self.sums[matrix] / count
        return mean


@dataclass(frozen=True, slots=True)
class Imatrix:
    """An importance matrix. ``entries`` has the name of a tensor for each; ``chunk_size`` is in tokens."""

    entries: Mapping[str, Channels]
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0
    chunk_size: int = 0
    path: Path = field(default=Path("imatrix.gguf"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Imatrix:
        """Read a file. Raises GGUFError where it is no importance matrix, or holds more than numbers >= 0."""
        with GGUFFile.open(path) as file:
            if file.metadata.get_str("general.type", "") != "imatrix":
                raise file_error(file.path, "is no importance matrix: general.type is not 'imatrix'")
            entries: dict[str, Channels] = {}
            for name, tensor in file.tensors.items():
                base, dot, kind = name.rpartition(".")
                if f"{dot}{kind}" == _SUMS:
                    entries[base] = _read_entry(file, base, tensor)
                elif f"{dot}{kind}" != _COUNTS or base + _SUMS not in file.tensors:
                    raise file_error(
                        file.path, f"tensor {quoted(name)} does not belong in an importance matrix"
                    )
            if not entries:
                raise file_error(file.path, "holds no importances")
            metadata = file.metadata
            return cls(
                entries,
                tuple(metadata.get_array("imatrix.datasets", str, [])),
                metadata.get_int("imatrix.chunk_count", 0),
                metadata.get_int("imatrix.chunk_size", 0),
                file.path,
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that llama.cpp's tools read as well. It takes its name when it is whole."""
        tensors: list[NewTensor] = []
        arrays: dict[str, npt.NDArray[np.float32]] = {}
        for name in sorted(self.entries, key=file_order):
            entry = self.entries[name]
            for suffix, array in ((_SUMS, entry.sums), (_COUNTS, entry.counts[:, None])):
                arrays[name + suffix] = np.ascontiguousarray(array, np.float32)
                tensors.append(NewTensor(name + suffix, array.shape, "F32"))
        metadata = {
            "general.type": encode_value("string", "imatrix"),
            "imatrix.datasets": encode_value("array of string", self.datasets),
            "imatrix.chunk_count": encode_value("uint32", self.n_chunks),
            "imatrix.chunk_size": encode_value("uint32", self.chunk_size),
        }
        with GGUFWriter(Path(path), metadata, tensors) as writer:
            for name, data in arrays.items():
                writer.write_at(writer.offsets[name], data.tobytes())
            writer.commit()

    def check_fits(self, model: GGUFFile) -> None:
        """Raise GGUFError where this was measured on another model: a matrix that the model lacks or that has
        other channels, or a layer of the model without any entry. Warn of single matrices without one.
        """
        for name, entry in self.entries.items():
            tensor = model.tensors.get(name)
            if tensor is None:
                raise self._foreign(model, f"it has {quoted(name)}, which the model lacks")
            n_matrices = 1 if len(tensor.shape) < 3 else int(np.prod(tensor.shape[:-2]))
            if entry.sums.shape != (n_matrices, tensor.shape[-1]):
                raise self._foreign(
                    model,
                    f"{quoted(name)} has {tensor.shape[-1]} channels there and {entry.sums.shape[1]} here",
                )
        matrices = [n for n, t in model.tensors.items() if layer_of(n) >= 0 and may_quantize(n, t.shape)]
        missing = [name for name in matrices if name not in self.entries]
        known = {layer_of(name) for name in self.entries}
        for name in missing:
            if layer_of(name) not in known:
                raise self._foreign(model, f"it has nothing for layer {layer_of(name)}")
        if missing:
            warnings.warn(
                f"{printable(str(self.path))}: no importances for {len(missing)} matrices, "
                f"{quoted(missing[0])} among them; they are quantized without",
                GristmillWarning,
                stacklevel=3,
            )

    def _foreign(self, model: GGUFFile, what: str) -> GGUFError:
        return file_error(
            self.path, f"is the importance matrix of another model than {printable(model.path.name)}: {what}"
        )

    def channels(self, name: str, matrix: int = 0) -> npt.NDArray[np.float32] | None:
        """What counts in a tensor's inputs, float32 [n_cols]; None where nothing is known of it."""
        entry = self.entries.get(name)
        return None if entry is None else entry.mean(matrix)

    def provenance(self) -> dict[str, bytes]:
        """The keys with which a quantized file says what it was made with; llama.cpp's names."""
        keys = {"quantize.imatrix.file": encode_value("string", str(self.path))}
        if self.datasets:
            keys["quantize.imatrix.dataset"] = encode_value("string", self.datasets[0])
        keys["quantize.imatrix.entries_count"] = encode_value("uint32", len(self.entries))
        if self.n_chunks > 0:
            keys["quantize.imatrix.chunks_count"] = encode_value("uint32", self.n_chunks)
        return keys


def _read_entry(file: GGUFFile, name: str, sums: TensorInfo) -> Channels:
    counts = file.tensors.get(name + _COUNTS)
    if counts is None:
        raise file_error(file.path, f"{quoted(name)} has sums but no counts")
    values, tokens = _read_floats(file, sums), _read_floats(file, counts).reshape(-1)
    values = values.reshape(-1, values.shape[-1])
    if len(tokens) not in {1, len(values)}:
        raise file_error(
            file.path, f"{quoted(name)} has sums of {len(values)} matrices, but counts of {len(tokens)}"
        )
    for what, array in (("sums", values), ("counts", tokens)):
        if not (np.isfinite(array) & (array >= 0)).all():
            raise file_error(file.path, f"{what} of {quoted(name)} are not all finite and >= 0")
    return Channels(values, tokens)


def _read_floats(file: GGUFFile, tensor: TensorInfo) -> npt.NDArray[np.float32]:
    if tensor.type != "F32":
        raise file_error(file.path, f"tensor {quoted(tensor.name)} is {tensor.type}, expected F32")
    data = os.pread(file.fileno(tensor.file_index), tensor.n_bytes, tensor.offset)
    if len(data) != tensor.n_bytes:
        raise file_error(file.path, "became shorter while it was read")
    return np.frombuffer(data, np.float32).reshape(tensor.shape)
