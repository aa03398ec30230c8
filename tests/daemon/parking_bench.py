"""Models of this process whose images do not all fit the daemon's host memory."""

from __future__ import annotations

import ctypes
import os

import numpy as np
from daemon_bench import PAGE_BYTES, Daemon, until

from gpupool.daemon.client import DaemonSession
from gpupool.model import Model

IMAGE_BYTES = 2 * PAGE_BYTES - 5000
HELD_BYTES = 2 * PAGE_BYTES - 4096
"""Of host memory."""


class Member:
    """A model whose weights are its own."""

    def __init__(self, daemon: Daemon, name: str, verify: str, lease_timeout_s: float) -> None:
        session = DaemonSession(daemon.socket_path, name)
        self.model = Model(name, session, lease_timeout_s=lease_timeout_s, verify=verify)
        self.name = name
        try:
            self.region = self.model.region("weights", IMAGE_BYTES)
        except BaseException:
            self.model.close()
            raise
        rng = np.random.default_rng(sum(name.encode()))
        self.due = rng.integers(0, 256, IMAGE_BYTES, dtype=np.uint8)
        np.asarray(self.region.image())[:] = self.due
        self.region.adopt_image()
        self.model.declare()

    def check(self) -> None:
        """Come in, have what is due, and stay."""
        with self.model.resident():
            seen = ctypes.string_at(self.region.address, IMAGE_BYTES)
            assert seen == self.due.tobytes(), self.name

    def use(self) -> None:
        """As if a request came and went."""
        for idle in (False, True):
            self.model.gate.set_idle(idle)

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


class Members:
    """All of them."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._made: dict[str, Member] = {}

    def __call__(
        self, name: str, *, verify: str = "always", lease_timeout_s: float = 60.0
    ) -> Member:
        """One more."""
        self._made[name] = Member(self.daemon, name, verify, lease_timeout_s)
        return self._made[name]

    def park(self, name: str) -> Member:
        """Have one parked by others that come, and go again."""
        others = [self(f"{name}, {number}") for number in (1, 2)]
        until(lambda: name in self.parked())
        for other in others:
            other.model.close()
        return self._made[name]

    def parked(self) -> list[str]:
        return [model.name for model in self.daemon.status().models if model.parked_bytes]

    def close(self) -> None:
        for member in self._made.values():
            member.model.close()
        self.daemon.until_ledger(free=4, host_bytes=0)
