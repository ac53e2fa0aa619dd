"""gristmill: a GGUF-native runtime for language models."""

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

__all__ = [
    "ArgumentError",
    "ContextFullError",
    "DeviceError",
    "DownloadError",
    "Error",
    "GGUFError",
    "GristmillWarning",
    "TemplateError",
    "UnsupportedModelError",
    "__version__",
]
