"""The engine in a process of its own for each instruction set, since one is chosen for the life of a process.

>>> engine = Engine("avx2")
>>> engine.logits(path, ids, splits=[5, 1, 1], n_threads=2, cache_type_k="f32")  # float32 [len(ids), n_vocab]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
_TESTS = Path(__file__).resolve().parents[1]


def known_isas() -> list[str]:
    """Every instruction set there is code for, whether or not this machine can run it."""
    return sorted(
        path.parent.name for path in (_TESTS.parents[1] / "csrc" / "cpu" / "isa").glob("*/isa.cmake")
    )


class EngineError(RuntimeError):
    """An exception of the engine's process: ``kind`` is its class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Engine:
    """A worker process in which gristmill uses the instruction set ``isa``."""

    def __init__(self, isa: str) -> None:
        path = os.pathsep.join([str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.isa = isa
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore::UserWarning", "-m", "oracle.engine"],
            env=os.environ | {"GRISTMILL_ISA": isa, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def logits(
        self, path: Path, ids: Sequence[int], splits: Sequence[int] | None = None, **options: Any
    ) -> Logits:
        """Logits of all positions, float32 [len(ids), n_vocab]; ``splits``: lengths of the pieces of ``ids``.

        ``options`` go to ``gristmill.load``.
        """
        request = {"path": str(path), "ids": list(map(int, ids)), "splits": splits, "options": options}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise EngineError("death", f"the engine's process ended with status {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise EngineError(*reply["error"])
        assert reply["isa"] == self.isa, "another instruction set ran than the one that was forced"
        shape = tuple(reply["shape"])
        data = self._process.stdout.read(4 * int(np.prod(shape)))
        return np.frombuffer(data, np.float32).reshape(shape)

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)


def forward_all(session: Any, ids: Sequence[int], splits: Sequence[int] | None = None) -> Logits:
    """Logits of all positions, given to the session in pieces of the lengths ``splits``."""
    ends = np.cumsum(splits if splits is not None else [len(ids)])
    assert ends[-1] == len(ids)
    pieces = [list(ids[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return np.concatenate([session.forward(piece, all_logits=True) for piece in pieces])


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    import gristmill

    for line in requests:
        request = json.loads(line)
        try:
            model = gristmill.load(request["path"], **request["options"])
            logits = forward_all(model.session(), request["ids"], request["splits"])
        except Exception as error:
            replies.write(json.dumps({"error": [type(error).__name__, str(error)]}).encode() + b"\n")
        else:
            assert logits.dtype == np.float32
            reply = {"isa": model.isa, "shape": logits.shape}
            replies.write(json.dumps(reply).encode() + b"\n" + logits.tobytes())
        replies.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
