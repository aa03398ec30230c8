"""Where workers may park images, and how much of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from gpupool.errors import UsageError


class ParkingPlace(NamedTuple):
    """A private folder on a disk."""

    folder: Path
    limit_bytes: int | None = None
    """Of all files together; None for what the disk has."""


def parking_place(folder: Path, limit_bytes: int | None = None) -> ParkingPlace:
    """The folder, made with mode 0700 if it is missing. Raises UsageError or OSError."""
    folder = folder.expanduser().absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = folder.stat()
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o022:
        raise UsageError(
            f"{folder} must belong to this user and be writable by nobody else, for images are "
            "parked in it: name another folder"
        )
    return ParkingPlace(folder, limit_bytes)
