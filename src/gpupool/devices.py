"""Devices by name."""

from __future__ import annotations

import re

from gpupool._core import Driver, open_cuda_driver, open_host_driver
from gpupool.errors import UsageError
from gpupool.trace import observe

_CUDA = re.compile(r"cuda(?::([0-9]{0,9}))?")


def open_driver(device: str) -> Driver:
    """The driver named ``host``, ``cuda`` or ``cuda:<ordinal>``; never one for another.

    It counts its calls, and is traced where GPUPOOL_TRACE is set. Raises UsageError for another
    name or an impossible trace, RuntimeError where there is no CUDA driver, DriverError where
    there is no such device.
    """
    if device == "host":
        return observe(open_host_driver())
    if not isinstance(device, str) or not (named := re.fullmatch(_CUDA, device)):
        raise UsageError(f"unknown device {device!r}: use 'host', 'cuda' or 'cuda:<ordinal>'")
    return observe(open_cuda_driver(int(named[1] or 0)))
