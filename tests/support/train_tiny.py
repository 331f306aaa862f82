"""``python -m densefeat.training`` in a process that knows the tiny network of the tests. Needs tests/ on the path."""

import sys

from densefeat.training.__main__ import main
from support import tiny_net  # noqa: F401  (registers it)

if __name__ == "__main__":
    sys.exit(main())
