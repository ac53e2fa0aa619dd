"""The format lab: what a quantization costs in size, speed and truth, measured on this machine.

>>> from gristmill import lab, load
>>> model = load("model.gguf", n_ctx=512)  # doctest: +SKIP
>>> lab.perplexity(model, open("text.txt").read()).perplexity  # doctest: +SKIP

Results are plain dataclasses of scalars and numpy arrays; a list of them goes straight into
``pandas.DataFrame``. Names are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gristmill.lab.perplexity import PerplexityResult, perplexity
    from gristmill.lab.text import TextWindows, cut

__all__ = ["PerplexityResult", "TextWindows", "cut", "perplexity"]

_HOME = {
    "perplexity": ("PerplexityResult", "perplexity"),
    "text": ("TextWindows", "cut"),
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
