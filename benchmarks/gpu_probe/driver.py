"""The CUDA driver through ctypes, so that a first run on a machine needs no build."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_ushort, c_void_p
from typing import Any

PINNED, POSIX_FD, ON_DEVICE = 1, 1, 1
READ, READ_WRITE = 1, 3
NON_BLOCKING = 1
BLOCKING_WITHOUT_TIMES = 3
REGISTER_FLAGS = 3  # portable, and mapped for kernels
NOT_INITIALIZED = 3


class MissingError(RuntimeError):
    """The driver has not got what a part needs."""


class CudaError(RuntimeError):
    """A call answered something other than success."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call} answered {name}")
        self.code = code


class Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", c_int), ("id", c_int))


class AllocationProperties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", c_int),
        ("handle_types", c_int),
        ("location", Location),
        ("win32_metadata", c_void_p),
        ("compression", c_ubyte),
        ("gpu_direct_rdma_capable", c_ubyte),
        ("usage", c_ushort),
        ("reserved", c_ubyte * 4),
    )


class AccessDescriptor(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", Location), ("flags", c_int))


_int, _unsigned, _u64 = POINTER(c_int), c_uint, c_uint64
_out, _sizes, _handles = POINTER(c_void_p), POINTER(c_size_t), POINTER(c_uint64)

# Name: the CUDA version that gave it its present form, and its parameters.
CALLS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "cuInit": (2000, (_unsigned,)),
    "cuDriverGetVersion": (2020, (_int,)),
    "cuGetErrorName": (6000, (c_int, POINTER(c_char_p))),
    "cuDeviceGet": (2000, (_int, c_int)),
    "cuDeviceGetName": (2000, (c_char_p, c_int, c_int)),
    "cuDeviceGetAttribute": (2000, (_int, c_int, c_int)),
    "cuDevicePrimaryCtxRetain": (7000, (_out, c_int)),
    "cuDevicePrimaryCtxGetState": (7000, (c_int, POINTER(c_uint), _int)),
    "cuCtxSetCurrent": (4000, (c_void_p,)),
    "cuCtxSynchronize": (2000, ()),
    "cuMemGetInfo": (3020, (_sizes, _sizes)),
    "cuMemGetAllocationGranularity": (10020, (_sizes, POINTER(AllocationProperties), c_int)),
    "cuMemCreate": (10020, (_handles, c_size_t, POINTER(AllocationProperties), c_uint64)),
    "cuMemRelease": (10020, (_u64,)),
    "cuMemExportToShareableHandle": (10020, (c_void_p, _u64, c_int, c_uint64)),
    "cuMemImportFromShareableHandle": (10020, (_handles, c_void_p, c_int)),
    "cuMemAddressReserve": (10020, (_handles, c_size_t, c_size_t, _u64, c_uint64)),
    "cuMemAddressFree": (10020, (_u64, c_size_t)),
    "cuMemMap": (10020, (_u64, c_size_t, c_size_t, _u64, c_uint64)),
    "cuMemUnmap": (10020, (_u64, c_size_t)),
    "cuMemSetAccess": (10020, (_u64, c_size_t, POINTER(AccessDescriptor), c_size_t)),
    "cuMemHostRegister": (6050, (c_void_p, c_size_t, _unsigned)),
    "cuMemHostUnregister": (4000, (c_void_p,)),
    "cuMemHostGetDevicePointer": (3020, (_handles, c_void_p, _unsigned)),
    "cuStreamCreate": (2000, (_out, _unsigned)),
    "cuStreamSynchronize": (2000, (c_void_p,)),
    "cuEventCreate": (2000, (_out, _unsigned)),
    "cuEventQuery": (2000, (c_void_p,)),
    "cuEventRecord": (2000, (c_void_p, c_void_p)),
    "cuEventSynchronize": (2000, (c_void_p,)),
    "cuMemcpyHtoDAsync": (3020, (_u64, c_void_p, c_size_t, c_void_p)),
    "cuMemcpyDtoHAsync": (3020, (c_void_p, _u64, c_size_t, c_void_p)),
    "cuMemsetD8Async": (3020, (_u64, c_ubyte, c_size_t, c_void_p)),
    "cuModuleLoadData": (2000, (_out, c_char_p)),
    "cuModuleUnload": (2000, (c_void_p,)),
    "cuModuleGetFunction": (2000, (_out, c_void_p, c_char_p)),
    "cuLaunchKernel": (4000, (c_void_p, *[_unsigned] * 7, c_void_p, _out, _out)),
}


class Driver:
    """``driver(call, ...)`` makes it and raises CudaError; ``code`` answers what it answered."""

    def __init__(self, library: str) -> None:
        try:
            self._library = ctypes.CDLL(library)
            self._find = self._library.cuGetProcAddress_v2
        except (OSError, AttributeError) as error:
            raise MissingError(f"{library} is no CUDA driver of 12.0 or newer: {error}") from None
        self._find.argtypes = (c_char_p, _out, c_int, c_uint64, _int)
        self._found: dict[str, Any] = {}

    @property
    def is_stand_in(self) -> bool:
        """Whether this is the library of gpupool's tests, behind which is no GPU."""
        return hasattr(self._library, "gpupool_standin_control")

    def code(self, call: str, *arguments: Any) -> int:
        """Make a call; 0 is success. MissingError where the driver has none of that name."""
        function = self._found.get(call)
        if function is None:
            version, parameters = CALLS[call]
            address = c_void_p()
            self._find(call.encode(), ctypes.byref(address), version, 0, None)
            if address.value is None:
                raise MissingError(f"this driver has no {call}")
            function = ctypes.CFUNCTYPE(c_int, *parameters)(address.value)
            self._found[call] = function
        return int(function(*arguments))

    def __call__(self, call: str, *arguments: Any) -> None:
        """Make a call. Raises CudaError unless it succeeds."""
        code = self.code(call, *arguments)
        if code != 0:
            raise CudaError(call, code, self.name(code))

    def name(self, code: int) -> str:
        """The name of what a call answered."""
        if code == 0:
            return "CUDA_SUCCESS"
        text = c_char_p()
        self.code("cuGetErrorName", code, ctypes.byref(text))
        return f"error {code}" if text.value is None else text.value.decode()
