"""The format lab: what a quantization costs in size, speed and truth, measured on this machine.

>>> from gristmill import lab, load
>>> model = load("model.gguf", n_ctx=512)  # doctest: +SKIP
>>> lab.perplexity(model, open("text.txt").read()).perplexity  # doctest: +SKIP
>>> lab.compare("model.gguf", formats=["Q8_0", "Q4_K_M"], text=open("text.txt").read())  # doctest: +SKIP

Results are plain dataclasses of scalars and numpy arrays; a list of them goes straight into
``pandas.DataFrame``. Names are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gristmill.lab.activations import LayerError
    from gristmill.lab.analysis import AnalyzeResult, Outlier, analyze
    from gristmill.lab.analysis_plot import plot_analysis
    from gristmill.lab.comparison import CompareResult, ModelRow, Settings, compare
    from gristmill.lab.comparison_html import as_html
    from gristmill.lab.divergences import DivergenceResult, divergence
    from gristmill.lab.plot import plot_comparison
    from gristmill.lab.repetition import Continuation, LoopResult, find_loop, loops
    from gristmill.lab.score import PerplexityResult, perplexity
    from gristmill.lab.speed import SpeedResult, speeds
    from gristmill.lab.text import TextWindows, cut
    from gristmill.lab.weights import TensorError

__all__ = [
    "AnalyzeResult",
    "CompareResult",
    "Continuation",
    "DivergenceResult",
    "LayerError",
    "LoopResult",
    "ModelRow",
    "Outlier",
    "PerplexityResult",
    "Settings",
    "SpeedResult",
    "TensorError",
    "TextWindows",
    "analyze",
    "as_html",
    "compare",
    "cut",
    "divergence",
    "find_loop",
    "loops",
    "perplexity",
    "plot_analysis",
    "plot_comparison",
    "speeds",
]

_HOME = {
    "activations": ("LayerError",),
    "analysis": ("AnalyzeResult", "Outlier", "analyze"),
    "analysis_plot": ("plot_analysis",),
    "comparison": ("CompareResult", "ModelRow", "Settings", "compare"),
    "divergences": ("DivergenceResult", "divergence"),
    "repetition": ("Continuation", "LoopResult", "find_loop", "loops"),
    "score": ("PerplexityResult", "perplexity"),
    "plot": ("plot_comparison",),
    "comparison_html": ("as_html",),
    "speed": ("SpeedResult", "speeds"),
    "text": ("TextWindows", "cut"),
    "weights": ("TensorError",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'gristmill.lab' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gristmill.lab.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
