"""`python -m metasearch`: the command line, where the script `metasearch` is not on the path."""
from __future__ import annotations

from metasearch.cli import main

if __name__ == "__main__":
    main()
