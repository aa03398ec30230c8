"""Device memory as a benchmark looks at it and writes to it, past gpupool."""

from __future__ import annotations

import ctypes
from typing import Protocol

from gpu_probe.device import Device, Pinned, Settings

from gpupool.errors import UsageError

PIECE_BYTES = 2 << 20  # of one read or write, at most


class DeviceMemory(Protocol):
    """That of one device."""

    is_gpu: bool

    def read(self, address: int, size_bytes: int) -> bytes:
        """What lies there."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Put it there; done when this returns."""
        ...

    def used_bytes(self) -> int | None:
        """What of the device's memory is not free, of all processes; None if it does not say."""
        ...


class HostMemory:
    """The host device: ordinary memory."""

    is_gpu = False

    def read(self, address: int, size_bytes: int) -> bytes:
        """What lies there."""
        return ctypes.string_at(address, size_bytes)

    def write(self, address: int, data: bytes) -> None:
        """Put it there."""
        ctypes.memmove(address, data, len(data))

    def used_bytes(self) -> None:
        """Nothing: its pages are memory of the process."""


class CudaMemory:
    """A GPU, by the driver's own calls."""

    def __init__(self, ordinal: int) -> None:
        """Raises RuntimeError where there is none."""
        self._device = Device(Settings("libcuda.so.1", 0, 0.0, ordinal))
        self._pinned, self._stream = Pinned(self._device, PIECE_BYTES), self._device.stream()
        self.is_gpu = not self._device.cu.is_stand_in

    def read(self, address: int, size_bytes: int) -> bytes:
        """What lies there."""
        return self._device.bytes_of(address, size_bytes)

    def write(self, address: int, data: bytes) -> None:
        """Put it there."""
        self._pinned.view[: len(data)] = data
        self._device.to_device(address, self._pinned.address, len(data), self._stream)
        self._device.wait(self._stream)

    def used_bytes(self) -> int | None:
        """What is not free; the stand-in would say it of this machine, which others use too."""
        return self._device.used_bytes() if self.is_gpu else None


def device_memory(device: str) -> DeviceMemory:
    """Of ``host``, ``cuda`` or ``cuda:1``. Raises UsageError or RuntimeError."""
    if device == "host":
        return HostMemory()
    name, _, ordinal = device.partition(":")
    if name != "cuda" or not (ordinal or "0").isdecimal():
        raise UsageError(f"unknown device {device!r}: use 'host', 'cuda' or 'cuda:<ordinal>'")
    return CudaMemory(int(ordinal or 0))
