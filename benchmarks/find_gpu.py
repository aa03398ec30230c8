"""Say in one sentence that there is no GPU, and exit with 2. Needs nothing but Python.

For `make`, before it builds for minutes what only a GPU can run.
"""

from __future__ import annotations

import ctypes
import sys

from gpu_probe.driver import Driver, MissingError


def main() -> int:
    """The exit status."""
    try:
        driver = Driver("libcuda.so.1")
        driver("cuInit", 0)
        driver("cuDeviceGet", ctypes.byref(ctypes.c_int()), 0)
    except (MissingError, RuntimeError) as error:
        print(f"there is no GPU to check, so nothing is built: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
