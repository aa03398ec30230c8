"""How much host memory there is, where images may be parked, and how much of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from gpupool.checks import whole
from gpupool.errors import UsageError


class ParkingPlace(NamedTuple):
    """A private folder on a disk."""

    folder: Path
    limit_bytes: int | None = None
    """Of all files together; None for what the disk has."""


class HostBudget(NamedTuple):
    """What models may have of host memory."""

    limit_bytes: int | None = None
    """None for what the system has."""
    place: ParkingPlace | None = None
    """Where images go that do not fit it; None where none are parked."""


def machine_memory_bytes() -> int:
    """Of the machine, where no other budget is given."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def host_budget(
    host_budget_bytes: int | None,
    parking_folder: str | Path | None,
    parking_limit_bytes: int | None,
) -> HostBudget:
    """What is asked for, looked at. Raises UsageError, or OSError where there is no such folder."""
    if host_budget_bytes is None:
        if parking_folder is not None:
            raise UsageError("a parking_folder needs host_budget_bytes: nothing is parked without")
    else:
        host_budget_bytes = whole("host_budget_bytes", host_budget_bytes, least=1)
    if parking_folder is None:
        if parking_limit_bytes is not None:
            raise UsageError("parking_limit_bytes needs a parking_folder")
        return HostBudget(host_budget_bytes)
    if parking_limit_bytes is not None:
        parking_limit_bytes = whole("parking_limit_bytes", parking_limit_bytes)
    return HostBudget(host_budget_bytes, parking_place(Path(parking_folder), parking_limit_bytes))


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
