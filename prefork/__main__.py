"""`python -m prefork`."""

from __future__ import annotations

from prefork.cli.main import main

if __name__ == "__main__":
    main()
