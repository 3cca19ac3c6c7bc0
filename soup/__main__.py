"""`python -m soup` is the `soup` script."""

from __future__ import annotations

from soup.cli import main

if __name__ == "__main__":
    main()
