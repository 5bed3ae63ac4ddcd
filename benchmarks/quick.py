"""`python -m benchmarks.quick`: `python -m benchmarks --quick`, with the same further options."""

from __future__ import annotations

import sys

from benchmarks.__main__ import main

if __name__ == "__main__":
    main(["--quick", *sys.argv[1:]])
