"""Runs the commands of the README's comparison as printed there, and puts what they write below them.

    python benchmarks/refresh_readme.py

The table goes between the README's two marks, the pictures into docs/images. Takes some minutes; nothing else
should run meanwhile, since speeds are measured. Files are kept in a temporary folder.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- comparison: written by benchmarks/refresh_readme.py -->", "<!-- end of comparison -->"


def commands(readme: str) -> str:
    """The shell block above the mark."""
    blocks = re.findall(r"```sh\n(.*?)```", readme[: readme.index(BEGIN)], re.DOTALL)
    return str(blocks[-1])


def main() -> None:
    readme = README.read_text(encoding="utf-8")
    begin, end = readme.index(BEGIN) + len(BEGIN), readme.index(END)
    script = commands(readme)
    print(script, file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "benchmarks").symlink_to(ROOT / "benchmarks")
        done = subprocess.run(
            ["bash", "-euc", script], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
        )
        for picture in Path(folder).glob("*.png"):
            shutil.copy(picture, ROOT / "docs" / "images" / picture.name)
    README.write_text(f"{readme[:begin]}\n{done.stdout.strip()}\n{readme[end:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
