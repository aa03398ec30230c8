"""The long run of swaps: nothing grows in it, and what is planted to grow is found and named."""

from __future__ import annotations

import contextlib
import importlib
import json
import mmap
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gpupool
from gpupool._core import BlockCopier, Driver, PagePool, SlabAllocator

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(
    os.environ.get(
        "GPUPOOL_STANDIN_LIBRARY", ROOT / "build/cpp/tests/cpp/standin/whole/libcuda.so.1"
    )
)
MIB = 1 << 20
SWAPS = 120


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("long_swaps")


def swapped(script: ModuleType, memory: Any = None) -> dict[str, Any]:
    plan = script.Plan("host", SWAPS, 2 * MIB, 2 * MIB, False)
    found: dict[str, Any] = script.swap_for_long(
        plan, memory or script.device_memory("host"), lambda _: None
    )
    return found


def a_file_mapped(_: Driver) -> mmap.mmap:
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        return mmap.mmap(file.fileno(), mmap.PAGESIZE)


def a_page(driver: Driver) -> PagePool:
    pages = PagePool(driver, 2 * MIB, 2 * MIB)
    pages.acquire(1, 1)
    return pages


def a_pinned_slab(driver: Driver) -> SlabAllocator:
    slabs = SlabAllocator.on_host(driver, MIB, [4096], 1)
    slabs.allocate(4096)
    return slabs


def more_memory() -> Callable[[Driver], int]:
    """Touches ever more of one mapping: what others have freed is in no way of that."""
    room, piece = mmap.mmap(-1, SWAPS * MIB // 4), b"x" * (MIB // 4)
    return lambda _: room.write(piece)


LEAKS: dict[str, Callable[[Driver], object]] = {
    "descriptors": lambda _: os.fdopen(os.dup(0), "rb", closefd=True),
    "mappings": a_file_mapped,
    "address_bytes": lambda _: mmap.mmap(-1, 4 * MIB),
    "memory_bytes": more_memory(),
    "pages": a_page,
    "registered_bytes": a_pinned_slab,
    "streams": BlockCopier,
}


@pytest.mark.parametrize("leak", [None, *LEAKS])
def test_what_each_swap_keeps_is_found(
    leak: str | None, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[object] = []
    resident = gpupool.Model.resident

    @contextlib.contextmanager
    def leaking(model: gpupool.Model) -> Iterator[None]:
        with resident(model):
            yield
        if leak is not None:
            kept.append(LEAKS[leak](model.driver))

    monkeypatch.setattr(gpupool.Model, "resident", leaking)
    found = swapped(script)
    kept.clear()
    sentence = script.sentence(found)
    if leak is None:
        assert sentence == ""
    else:
        assert f"worker {leak} from at most " in sentence and len(sentence.splitlines()) == 1
    assert found["writes"] == SWAPS // 7 and found["checks"] > 20


def test_one_wrong_byte_is_found(script: ModuleType) -> None:
    host = script.device_memory("host")

    class Slips:
        """One of many writes goes wrong by a bit."""

        is_gpu, used_bytes, read = False, host.used_bytes, host.read
        writes = 0

        def write(self, address: int, data: bytes) -> None:
            self.writes += 1
            if self.writes == 11:
                data = data[:-1] + bytes([data[-1] ^ 1])
            host.write(address, data)

    with pytest.raises(script.WrongError, match="are not what was written, between bytes"):
        swapped(script, Slips())


def test_a_swap_that_was_none_is_found(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.Plan, "budget_bytes", 64 * MIB)  # room for both
    with pytest.raises(script.WrongError, match="swap 3 was none"):
        swapped(script)


def command(*arguments: str, paths: tuple[Path, ...] = (), **environment: str) -> Any:
    own = Path(gpupool.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "benchmarks/long_swaps.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*paths, own)))} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


SHORT = ("--swaps", str(SWAPS), "--mib", "2", "--json", "-")


@pytest.mark.parametrize("has_daemon", [False, True])
def test_on_the_stand_in(has_daemon: bool) -> None:
    if not STAND_IN.exists():
        pytest.skip(f"no stand-in driver at {STAND_IN}: make test-cpp builds it")
    daemon = ("--daemon",) if has_daemon else ()
    done = command("--device", "cuda", *daemon, *SHORT, LD_LIBRARY_PATH=str(STAND_IN.parent))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["is_gpu"] is False
    assert ("daemon descriptors" in found["figures"]) == has_daemon
    assert f"{SWAPS} of {SWAPS} swaps" in done.stderr


# What the run asks of a GPU, and not of the stand-in, whose memory is that of the machine.
USED = """
import sys
from gpu_probe.device import Device, Settings
device = Device(Settings(sys.argv[1], 0, 0.0, 0))
print(device.used_bytes(), device.free_bytes())
"""


def test_what_a_device_has_not_free() -> None:
    if not STAND_IN.exists():
        pytest.skip(f"no stand-in driver at {STAND_IN}: make test-cpp builds it")
    done = subprocess.run(
        [sys.executable, "-c", USED, STAND_IN],
        cwd=ROOT / "benchmarks",
        env=os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    used, free = map(int, done.stdout.split())
    assert used > 0 and abs(used + free - os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE) < 64 * MIB


# Keeps a copy of a descriptor for every packet that the daemon hears, from its start on.
LEAKING_DAEMON = """
import os, socket, sys
if "daemon" in sys.orig_argv:
    hear = socket.socket.recvmsg
    def leaking(self, *arguments):
        os.dup(0)
        return hear(self, *arguments)
    socket.socket.recvmsg = leaking
"""


def test_what_a_daemon_keeps_is_found(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LEAKING_DAEMON)
    done = command("--device", "host", "--daemon", *SHORT, paths=(tmp_path,))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"over {SWAPS} swaps grew: daemon descriptors from at most \d+ to at least \d+", last
    ), last
    grew = {name for name, each in json.loads(done.stdout)["figures"].items() if each["grew"]}
    assert grew == {"daemon descriptors"}


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda"])
def test_a_device_that_there_is_not(device: str) -> None:
    done = command("--device", device, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.startswith("there is no such device: ")
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""
