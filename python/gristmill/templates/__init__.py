"""Rendering of chat templates from model files: untrusted Jinja that reaches nothing and always ends.

Jinja's own sandbox withholds attributes but not time and memory, so the template is rewritten before it is
compiled: wherever it can loop, copy, compare or grow a value, a function of :class:`~.environment.Guarded`
stands between, which charges a :class:`~.meter.Meter` before the work is done. What a template can name is
listed (node types, filters, tests, globals, methods); everything else does not exist for it.
"""
