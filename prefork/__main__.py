"""`python -m prefork`."""

from __future__ import annotations

import sys

# Python has put the current folder first, where a file may have the name of a module that is about to be imported.
_first = None if sys.flags.safe_path else sys.path.pop(0)

from prefork.cli.main import main  # noqa: E402

if _first is not None:
    sys.path.insert(0, _first)

if __name__ == "__main__":
    main()
