"""A device as the parts use it: pages, mappings, streams, pinned memory."""

from __future__ import annotations

import ctypes
import mmap
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass

from gpu_probe.driver import (
    BLOCKING_WITHOUT_TIMES,
    NON_BLOCKING,
    ON_DEVICE,
    PINNED,
    POSIX_FD,
    READ_WRITE,
    REGISTER_FLAGS,
    AccessDescriptor,
    AllocationProperties,
    Driver,
    Location,
)

MIB = 1 << 20
GIB = 1 << 30
GLASS_BYTES = 2 * MIB  # through which device memory is looked at


@dataclass(frozen=True)
class Settings:
    """Of every part: where the driver is, how much memory it may take, how long one measure is."""

    driver: str
    total_bytes: int
    seconds: float
    ordinal: int


class Area:
    """Device memory at fixed addresses, a page behind each part of it."""

    def __init__(self, device: Device, total_bytes: int, page_bytes: int) -> None:
        self.address, self.bytes = device.reserve(total_bytes), total_bytes
        self.pages = [device.create(page_bytes) for _ in range(total_bytes // page_bytes)]
        for index, page in enumerate(self.pages):
            device.map(self.address + index * page_bytes, page_bytes, page)
        device.access(self.address, total_bytes)


class Pinned:
    """Host memory that the driver knows, its pages present, for as long as the process lives."""

    def __init__(self, device: Device, total_bytes: int) -> None:
        self.memory = mmap.mmap(-1, total_bytes)
        self.view = memoryview(self.memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        ctypes.memset(self.address, 0, total_bytes)
        device.register(self.address, total_bytes)
        device.keep(self)
        self.on_device = device.on_device(self.address)

    def word(self, index: int) -> int:
        """One of 64 bits, as it is now."""
        return int(c_uint64.from_address(self.address + 8 * index).value)


class Pages:
    """Those of a device, by the calls that gpupool's daemon makes: none asks for a context."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.cu, self.handle = settings, Driver(settings.driver), c_int()
        self.cu("cuInit", 0)
        self.cu("cuDeviceGet", byref(self.handle), settings.ordinal)
        self._properties = AllocationProperties(
            type=PINNED, handle_types=POSIX_FD, location=Location(ON_DEVICE, settings.ordinal)
        )

    def has_context(self) -> bool:
        """Whether the device's primary context is there, in this process."""
        flags, active = c_uint(), c_int()
        self.cu("cuDevicePrimaryCtxGetState", self.handle, byref(flags), byref(active))
        return active.value != 0

    def granularity(self) -> int:
        """The smallest page."""
        size = c_size_t()
        self.cu("cuMemGetAllocationGranularity", byref(size), byref(self._properties), 0)
        return size.value

    def create(self, page_bytes: int) -> int:
        """A page."""
        page = c_uint64()
        self.cu("cuMemCreate", byref(page), page_bytes, byref(self._properties), 0)
        return page.value

    def export(self, page: int) -> int:
        """A descriptor of it."""
        fd = c_int(-1)
        self.cu("cuMemExportToShareableHandle", byref(fd), page, POSIX_FD, 0)
        return fd.value

    def import_page(self, fd: int) -> int:
        """The page behind a descriptor."""
        page = c_uint64()
        self.cu("cuMemImportFromShareableHandle", byref(page), c_void_p(fd), POSIX_FD)
        return page.value

    def release(self, page: int) -> None:
        """Let go of a page."""
        self.cu("cuMemRelease", page)


class Device(Pages):
    """One in its primary context, which becomes the current one of this thread."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._context = c_void_p()
        self.cu("cuDevicePrimaryCtxRetain", byref(self._context), self.handle)
        self.enter()
        self._kept: list[Pinned] = []
        self._glass: tuple[Pinned, c_void_p] | None = None

    def enter(self) -> None:
        """Make the context that of the calling thread."""
        self.cu("cuCtxSetCurrent", self._context)

    def keep(self, pinned: Pinned) -> None:
        """Else it would be unmapped while the driver knows it."""
        self._kept.append(pinned)

    def attribute(self, number: int) -> int:
        """A CUdevice_attribute."""
        value = c_int()
        self.cu("cuDeviceGetAttribute", byref(value), number, self.handle)
        return value.value

    def free_bytes(self) -> int:
        """What the device has free, for all processes together."""
        free, total = c_size_t(), c_size_t()
        self.cu("cuMemGetInfo", byref(free), byref(total))
        return free.value

    def used_bytes(self) -> int:
        """What it has not free, for all processes together."""
        free, total = c_size_t(), c_size_t()
        self.cu("cuMemGetInfo", byref(free), byref(total))
        return total.value - free.value

    def reserve(self, size_bytes: int) -> int:
        """Addresses."""
        address = c_uint64()
        self.cu("cuMemAddressReserve", byref(address), size_bytes, self.granularity(), 0, 0)
        return address.value

    def map(self, address: int, page_bytes: int, page: int) -> None:
        """Put a page there, to which nobody has access yet."""
        self.cu("cuMemMap", address, page_bytes, 0, page, 0)

    def access_code(self, address: int, size_bytes: int, flags: int = READ_WRITE) -> int:
        """Give access; what the driver answers."""
        wanted = AccessDescriptor(Location(ON_DEVICE, self.settings.ordinal), flags)
        return self.cu.code("cuMemSetAccess", address, size_bytes, byref(wanted), 1)

    def access(self, address: int, size_bytes: int, flags: int = READ_WRITE) -> None:
        """Give access."""
        wanted = AccessDescriptor(Location(ON_DEVICE, self.settings.ordinal), flags)
        self.cu("cuMemSetAccess", address, size_bytes, byref(wanted), 1)

    def unmap(self, address: int, size_bytes: int) -> None:
        """Take what is mapped away."""
        self.cu("cuMemUnmap", address, size_bytes)

    def register(self, address: int, size_bytes: int) -> None:
        """Pin host memory."""
        self.cu("cuMemHostRegister", address, size_bytes, REGISTER_FLAGS)

    def unregister(self, address: int) -> None:
        """Let go of pinned memory."""
        self.cu("cuMemHostUnregister", address)

    def on_device(self, address: int) -> int:
        """Where the device sees pinned memory."""
        there = c_uint64()
        self.cu("cuMemHostGetDevicePointer", byref(there), address, 0)
        return there.value

    def stream(self) -> c_void_p:
        """One that waits for no other."""
        stream = c_void_p()
        self.cu("cuStreamCreate", byref(stream), NON_BLOCKING)
        return stream

    def event(self) -> c_void_p:
        """One as gpupool makes them: who waits for it sleeps."""
        event = c_void_p()
        self.cu("cuEventCreate", byref(event), BLOCKING_WITHOUT_TIMES)
        return event

    def to_device(self, there: int, here: int, size_bytes: int, stream: c_void_p) -> None:
        """Ask for a copy."""
        self.cu("cuMemcpyHtoDAsync", there, here, size_bytes, stream)

    def to_host(self, here: int, there: int, size_bytes: int, stream: c_void_p) -> None:
        """Ask for a copy."""
        self.cu("cuMemcpyDtoHAsync", here, there, size_bytes, stream)

    def wait(self, stream: c_void_p) -> None:
        """Until all that was asked of a stream is done."""
        self.cu("cuStreamSynchronize", stream)

    def bytes_of(self, address: int, size_bytes: int) -> bytes:
        """What lies there."""
        if self._glass is None:
            self._glass = (Pinned(self, GLASS_BYTES), self.stream())
        pinned, stream = self._glass
        found = bytearray()
        while len(found) < size_bytes:
            piece = min(GLASS_BYTES, size_bytes - len(found))
            self.to_host(pinned.address, address + len(found), piece, stream)
            self.wait(stream)
            found += pinned.view[:piece]
        return bytes(found)
