"""``python -m gristmill``: the same as the ``gristmill`` command."""

import sys

from gristmill.cli import main

if __name__ == "__main__":
    sys.exit(main())
