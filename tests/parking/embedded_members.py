"""Models of an embedded pool whose images do not all fit its host memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpupool import Pool
from gpupool._core import FaultPlan, open_host_driver, with_faults
from gpupool.statistics import ModelStatistics

PAGE_BYTES = 2 << 20
IMAGE_BYTES = 2 * PAGE_BYTES - 5000
HELD_BYTES = 2 * PAGE_BYTES - 4096
"""Of host memory."""
PATIENCE_S = 60.0


def pool_of(
    folder: Path | None,
    *,
    pages: int = 4,
    images: int | None = 2,
    limit_bytes: int | None = None,
    plan: FaultPlan | None = None,
) -> Pool:
    """Device memory for two models, and host memory for the images of two."""
    driver = None if plan is None else with_faults(open_host_driver(), plan)
    return Pool(
        device="host",
        budget_bytes=pages * PAGE_BYTES,
        page_bytes=PAGE_BYTES,
        host_budget_bytes=None if images is None else images * HELD_BYTES,
        parking_folder=folder,
        parking_limit_bytes=limit_bytes,
        driver=driver,
    )


class Member:
    """A model whose weights are its own."""

    def __init__(self, pool: Pool, name: str, **more: Any) -> None:
        self.pool = pool
        self.name = name
        self.model = pool.model(name, **{"lease_timeout_s": PATIENCE_S} | more)
        try:
            self.region = self.model.region("weights", IMAGE_BYTES)
        except BaseException:
            self.model.close()
            raise
        rng = np.random.default_rng(sum(name.encode()))
        self.due = rng.integers(0, 256, IMAGE_BYTES, dtype=np.uint8)
        np.asarray(self.region.image())[:] = self.due
        self.region.adopt_image()

    def check(self) -> None:
        """Come in, have what is due, and stay."""
        with self.model.resident():
            self.check_inside()

    def check_inside(self) -> None:
        seen = ctypes.string_at(self.region.address, IMAGE_BYTES)
        assert seen == self.due.tobytes(), self.name

    def write(self, at: int, byte: int) -> None:
        """Inside a step."""
        ctypes.memset(self.region.address + at, byte, 1)
        self.due[at] = byte
        self.region.mark_written([(at, 1)])

    @property
    def is_parked(self) -> bool:
        """And its host memory is off the account."""
        return self.statistics.parked_bytes > 0

    @property
    def statistics(self) -> ModelStatistics:
        return next(m for m in self.pool.statistics().models if m.name == self.name)

    @property
    def file(self) -> int:
        """The descriptor of what it is parked in."""
        file = self.model._residency.parking._file
        assert file is not None
        return file._fd

    def flip(self, at: int) -> None:
        """A bit of the file."""
        with os.fdopen(os.open(f"/proc/self/fd/{self.file}", os.O_RDWR), "r+b") as file:
            file.seek(at)
            (value,) = file.read(1)
            file.seek(at)
            file.write(bytes([value ^ 16]))


def parked(*members: Member) -> list[str]:
    return [member.name for member in members if member.is_parked]


def memfds() -> set[int]:
    """Those for images that this process has open, by inode."""
    found: set[int] = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if "memfd:gpupool-image" in str(link.readlink()):
                found.add(link.stat().st_ino)
    return found


class Watched:
    """A lock that says when somebody has to wait for it."""

    def __init__(self) -> None:
        self.awaited = threading.Event()
        self._lock = threading.Lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        if blocking:
            self.awaited.set()
        return blocking and self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@contextlib.contextmanager
def closed_at_the_end(pool: Pool, folder: Path | None = None) -> Iterator[Pool]:
    """Nothing is on the account, or left in the folder, once its models are closed."""
    yield pool
    pool.close()
    now = pool.statistics()
    assert (now.host_bytes, now.driver.registered_bytes) == (0, 0)
    assert now.pages.free == now.pages.total
    if folder is not None:
        assert list(folder.iterdir()) == []


@contextlib.contextmanager
def beside(work: Callable[[], object]) -> Iterator[list[object]]:
    """Run ``work`` beside the block; what it returned or raised is in the list afterwards."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield results
    finally:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
