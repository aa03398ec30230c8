"""The probe's own list of calls, and its kernels, held against what knows better."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = ROOT / "benchmarks" / "gpu_probe"
# Asked for by the probe alone.
OWN = {
    "cuDriverGetVersion",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxGetState",
}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PROBE.parent)
    return importlib.import_module("gpu_probe.driver")


def test_calls_are_those_of_the_core(driver: ModuleType) -> None:
    text = (ROOT / "csrc/driver/cuda_abi.h").read_text()
    text = re.sub(r"\\\s*\n", "", text)
    listed = re.findall(r"X\((cu\w+), (\d+),\s*\(([^)]*)\)\)", text)
    core = {
        name: (int(version), len([each for each in parameters.split(",") if each.strip()]))
        for name, version, parameters in listed
    }
    assert len(core) > 30
    for name, (version, parameters) in driver.CALLS.items():
        if name not in OWN:
            assert (version, len(parameters)) == core[name], name


def test_structures_are_as_large_as_those_of_the_core(driver: ModuleType) -> None:
    import ctypes

    assert ctypes.sizeof(driver.AllocationProperties) == 32
    assert driver.AllocationProperties.win32_metadata.offset == 16
    assert driver.AllocationProperties.compression.offset == 24
    assert ctypes.sizeof(driver.AccessDescriptor) == 12


def test_every_call_of_the_list_is_made(driver: ModuleType) -> None:
    strings = {
        node.value
        for path in PROBE.glob("*.py")
        if path.name != "driver.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert driver.CALLS.keys() - strings == {"cuGetErrorName"}  # which the driver itself calls


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_kernels_compile(driver: ModuleType, architecture: str, tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    kernels = importlib.import_module("gpu_probe.kernels")
    source = tmp_path / "probe.ptx"
    source.write_bytes(kernels.PTX)
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    command = [str(ptxas), "-v", f"-arch={architecture}", "-o", "/dev/null", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    compiled = re.findall(r"entry function '(\w+)'", done.stderr)
    assert set(compiled) == {f"gpupool_probe_{name}" for name in kernels.ENTRIES}
    spills = re.findall(r"(\d+) bytes spill stores", done.stderr)
    assert set(spills) == {"0"}


def test_the_probe_needs_nothing_but_python() -> None:
    own = {"gpu_probe", "figures_file"}
    rest = [PROBE.parent / f"{name}.py" for name in ("probe_gpu", "figures_file")]
    for path in (*PROBE.glob("*.py"), *rest):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                assert top in own | sys.stdlib_module_names, f"{path}: {name}"
