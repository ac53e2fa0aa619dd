"""How far a model's residual stream is from a base's, layer by layer, on a real text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gristmill.errors import Error
from gristmill.lab.text import TextWindows
from gristmill.messages import printable

if TYPE_CHECKING:
    from gristmill.model import Model
    from gristmill.session import Session

Progress = Callable[[int, int], None]
"""Called after each window with the windows done and all there are."""

_STREAM_BYTES = 64 << 20


@dataclass(frozen=True)
class LayerError:
    """What comes out of a layer (of the embedding where ``layer`` is -1), against the base.

    Errors are lengths of difference vectors over lengths of the base's vectors, each token by itself, so that
    the few tokens with very large activations do not drown the others. ``stream_error`` is the mean over
    tokens of the residual stream after the layer: what all layers until here have done. ``added_error`` is
    the mean for what this layer alone added to the stream. ``worst_error`` is ``stream_error`` of the worst
    token.
    """

    layer: int
    stream_error: float
    added_error: float
    worst_error: float


def activation_errors(
    base: Model, other: Model, windows: TextWindows, progress: Progress | None = None
) -> list[LayerError]:
    """Run both models over the windows and compare the residual stream before the layers and after each.

    Raises:
        Error: The two have different shapes.
        ContextFullError: A model was loaded with a context that is smaller than a window.
    """
    if (base.n_layer, base.n_embd) != (other.n_layer, other.n_embd):
        raise Error(
            f"{printable(str(other.path))}: has {other.n_layer} layers of width {other.n_embd}, "
            f"but {printable(base.path.name)} has {base.n_layer} of width {base.n_embd}"
        )
    n_streams = base.n_layer + 1
    stream, added, worst = np.zeros(n_streams), np.zeros(n_streams), np.zeros(n_streams)
    step = max(1, _STREAM_BYTES // (4 * n_streams * base.n_embd))
    step = min(step, base.engine.max_batch, other.engine.max_batch)
    sessions = base.session(), other.session()
    for i, window in enumerate(windows.ids):
        for session in sessions:
            session.truncate(0)
        for first in range(0, windows.n_ctx, step):
            mine, theirs = (residuals(session, window[first : first + step]) for session in sessions)
            before_mine = before_theirs = np.zeros_like(mine[0])
            for k in range(n_streams):
                error = _relative(theirs[k] - mine[k], mine[k])
                stream[k] += error.sum()
                worst[k] = max(worst[k], float(error.max()))
                grown = mine[k] - before_mine
                added[k] += _relative(theirs[k] - before_theirs - grown, grown).sum()
                before_mine, before_theirs = mine[k], theirs[k]
        if progress is not None:
            progress(i + 1, windows.n_windows)
    n = windows.ids.size
    return [
        LayerError(k - 1, float(stream[k] / n), float(added[k] / n), float(worst[k]))
        for k in range(n_streams)
    ]


def residuals(session: Session, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Append tokens; float32 ``[n_layer + 1, len(ids), n_embd]``, the residual stream before each layer and
    after the last."""
    streams: NDArray[np.float32] = session.core.residuals(ids)
    session.tokens.extend(ids.tolist())
    return streams


def _relative(difference: NDArray[np.float32], of: NDArray[np.float32]) -> NDArray[np.float64]:
    """Lengths of rows of ``difference`` over those of ``of``, ``[n_tokens]``; 0 where both are 0."""
    a, b = (np.sqrt(np.square(x, dtype=np.float64).sum(axis=1)) for x in (difference, of))
    ratio: NDArray[np.float64] = np.divide(a, b, out=np.where(a > 0, np.inf, 0.0), where=b > 0)
    return ratio
