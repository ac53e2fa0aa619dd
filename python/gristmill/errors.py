"""Every error gristmill raises on purpose. The command line turns each into one line on standard error."""

from __future__ import annotations


class Error(Exception):
    """Base of all gristmill errors. ``str(error)`` is one line that names what is at fault."""


class GGUFError(Error):
    """The file is malformed, truncated, or contradicts itself. The message begins with the file's path."""


class UnsupportedModelError(Error):
    """The file is sound, but uses an architecture, format or tokenizer that gristmill does not run."""


class ContextFullError(Error):
    """More positions were asked for than the context holds; the message says both lengths."""


class DeviceError(Error):
    """Memory, a mapping, or a call of a device failed. The process stays usable."""


class ArgumentError(Error, ValueError):
    """An argument is of the wrong type or out of range (exit status 2 on the command line)."""


class TemplateError(Error):
    """A chat template failed, asked for something unsafe, or exceeded its limits."""


class DownloadError(Error):
    """A model could not be fetched or did not match its checksum; what was fetched is kept for resuming."""


class GristmillWarning(UserWarning):
    """Something the user set has no effect, or not the effect its name suggests."""
