"""English prose to measure models on, from what every Python brings: the language reference of ``help()``.

    python benchmarks/text.py > text.txt

The text is the same wherever the Python version is the same. It is Python's documentation, under Python's
licence, and no part of this repository.
"""

from __future__ import annotations

import argparse
import sys
from pydoc_data.topics import topics


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--characters", type=int, default=80_000, metavar="N", help="where to stop (80000; 0: all there is)"
    )
    args = parser.parse_args()
    # Long topics are prose; the short ones mostly repeat their paragraphs.
    text = "\n\n".join(sorted(topics.values(), key=lambda topic: (-len(topic), topic)))
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[attr-defined]
    sys.stdout.write(text[: args.characters or None].rstrip() + "\n")


if __name__ == "__main__":
    main()
