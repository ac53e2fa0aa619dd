"""gristmill: a GGUF-native runtime for language models.

>>> import gristmill
>>> model = gristmill.load("qwq.gguf")  # doctest: +SKIP
>>> print(model.generate("Why is the sky blue?", max_tokens=64).text())  # doctest: +SKIP

Names are imported on first use, so that ``import gristmill`` and ``gristmill --help`` are instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gristmill._version import __version__
from gristmill.errors import (
    ArgumentError,
    ContextFullError,
    DeviceError,
    DownloadError,
    Error,
    GGUFError,
    GristmillWarning,
    TemplateError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from gristmill.chat import ChatTemplate, ReasoningSplitter, strip_reasoning
    from gristmill.generate import Generation, GenerationStats, Piece
    from gristmill.gguf import GGUFFile, TensorInfo
    from gristmill.metadata import Metadata
    from gristmill.model import Model, load
    from gristmill.quants import dequantize, formats, matmul, quantize
    from gristmill.sampling import (
        CustomSampler,
        Dry,
        Greedy,
        LogitBias,
        MinP,
        Mirostat,
        MirostatV2,
        Penalties,
        SamplerChain,
        Temperature,
        TopK,
        TopNSigma,
        TopP,
        TypicalP,
        Xtc,
    )
    from gristmill.session import Session
    from gristmill.tokenizer import Tokenizer

__all__ = [
    "ArgumentError",
    "ChatTemplate",
    "ContextFullError",
    "CustomSampler",
    "DeviceError",
    "DownloadError",
    "Dry",
    "Error",
    "GGUFError",
    "GGUFFile",
    "Generation",
    "GenerationStats",
    "Greedy",
    "GristmillWarning",
    "LogitBias",
    "Metadata",
    "MinP",
    "Mirostat",
    "MirostatV2",
    "Model",
    "Penalties",
    "Piece",
    "ReasoningSplitter",
    "SamplerChain",
    "Session",
    "Temperature",
    "TemplateError",
    "TensorInfo",
    "Tokenizer",
    "TopK",
    "TopNSigma",
    "TopP",
    "TypicalP",
    "UnsupportedModelError",
    "Xtc",
    "__version__",
    "dequantize",
    "formats",
    "load",
    "matmul",
    "quantize",
    "strip_reasoning",
]

_HOME = {
    "chat": ("ChatTemplate", "ReasoningSplitter", "strip_reasoning"),
    "generate": ("Generation", "GenerationStats", "Piece"),
    "gguf": ("GGUFFile", "TensorInfo"),
    "metadata": ("Metadata",),
    "model": ("Model", "load"),
    "quants": ("dequantize", "formats", "matmul", "quantize"),
    "sampling": (
        "CustomSampler",
        "Dry",
        "Greedy",
        "LogitBias",
        "MinP",
        "Mirostat",
        "MirostatV2",
        "Penalties",
        "SamplerChain",
        "Temperature",
        "TopK",
        "TopNSigma",
        "TopP",
        "TypicalP",
        "Xtc",
    ),
    "session": ("Session",),
    "tokenizer": ("Tokenizer",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'gristmill' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gristmill.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
