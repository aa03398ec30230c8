"""Which device and driver this is."""

from __future__ import annotations

import ctypes
import platform
import time
from ctypes import byref, c_int, c_size_t
from typing import Any

from gpu_probe.device import Device, Settings

# CUdevice_attribute.
ATTRIBUTES = {
    "multiprocessors": 16,
    "copy_engines": 40,
    "compute_major": 75,
    "compute_minor": 76,
    "compute_mode": 20,
}


def run(settings: Settings) -> dict[str, Any]:
    """Names and sizes, and what a call from Python costs, which every figure has in it."""
    device = Device(settings)
    name, version = ctypes.create_string_buffer(128), c_int()
    device.cu("cuDeviceGetName", name, len(name), device.handle)
    device.cu("cuDriverGetVersion", byref(version))
    free, total = c_size_t(), c_size_t()
    device.cu("cuMemGetInfo", byref(free), byref(total))
    began = time.perf_counter()
    for _ in range(1000):
        device.cu.code("cuMemGetInfo", byref(free), byref(total))
    call_us = (time.perf_counter() - began) * 1e3
    attributes = {key: device.attribute(number) for key, number in ATTRIBUTES.items()}
    return {
        "name": name.value.decode(),
        "stand_in": device.cu.is_stand_in,
        "driver_version": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "free_mib": free.value >> 20,
        "total_mib": total.value >> 20,
        "smallest_page_mib": device.granularity() / (1 << 20),
        **attributes,
        "memory_info_call_us": call_us,
        "kernel": platform.release(),
    }
