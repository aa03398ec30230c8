"""Print the one line that sums a coverage report up; the exit status says if it is enough.

python tools/coverage_line.py SUMMARY.json 95
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    """Read gcovr's summary; 1 if lines or branches are covered less than asked for."""
    summary = json.loads(Path(sys.argv[1]).read_text())
    percent = {
        name: 100 * summary[f"{one}_covered"] / summary[f"{one}_total"]
        for name, one in (("lines", "line"), ("branches", "branch"))
    }
    # Cut off, not rounded: 94.99 is not 95.
    print(*(f"{name}={int(10 * value) / 10}%" for name, value in percent.items()))
    return int(min(percent.values()) < float(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
