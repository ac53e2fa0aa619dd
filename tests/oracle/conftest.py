"""Makes tests/python/oracle importable: ``pip install ".[test,oracle]"``, then ``pytest tests/oracle``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
