#!/usr/bin/env python3
"""A table of gpu_bench's lines: ``table.py bench.jsonl``. Of a figure measured twice, the last counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    rows: dict[tuple[str, str], dict[str, object]] = {}
    for line in Path(sys.argv[1]).read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a run that was stopped within a line
        if "part" in row:
            rows[row["part"], row["name"]] = row
        else:
            print(", ".join(f"{key} {value}" for key, value in row.items()))
    part = ""
    parts = list(dict.fromkeys(str(row["part"]) for row in rows.values()))
    for row in sorted(rows.values(), key=lambda row: parts.index(str(row["part"]))):
        if row["part"] != part:
            part = str(row["part"])
            print(f"\n{part}")
        share = f"{row['share']:7.1%} of {row['limit']}" if "share" in row else ""
        print(f"  {row['name']:52} {row['value']:>10.5g} {row['unit']:8} {share}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
