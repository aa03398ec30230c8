"""The whole life of a client, in stages at which the test has the other clients do something."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path

from daemon_bench import PAGE_BYTES, until
from stamps import Stamps, pattern

from gpupool._core import Driver
from gpupool.daemon.client import DaemonSession
from gpupool.daemon.protocol import Working
from gpupool.errors import LeaseTimeoutError
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.mover import CopierMover
from gpupool.kv.paged import PagedKv
from gpupool.model import Model

NAME = "mortal"
REGIONS = {
    "weights": PAGE_BYTES,
    "runtime": 70_000,
    "cudagraph": 4096,
    "kv_cache": PAGE_BYTES,
    "workspace": PAGE_BYTES // 2,
}
BLOCK_BYTES = 4096
LAYOUT = BlockLayout.of([(0, BLOCK_BYTES, BLOCK_BYTES)], blocks=4)
PAGES = len(REGIONS) + 1  # and one more of blocks
KEPT = "it cannot leave this once"


class _Reluctance:
    """Lets the next swap-out fail once."""

    once = False

    def __call__(self) -> None:
        if self.once:
            self.once = False
            raise RuntimeError(KEPT)


class _Blocks:
    """A region of KV blocks, two of which are written."""

    def __init__(self, model: Model, owner: str) -> None:
        def by_batches(driver: Driver, layout: BlockLayout, address: int, _: int) -> CopierMover:
            return CopierMover(driver, layout, address, method="batch")

        self._owner = owner
        self._kv = PagedKv(model, LAYOUT, region_bytes=PAGE_BYTES, dtype="int8", mover=by_batches)
        self._written: dict[int, bytes] = {}

    def write(self, generation: int) -> None:
        blocks = (1, 3)
        self._kv.write(blocks)
        for block in blocks:
            self._written[block] = pattern(self._owner, generation, f"{block}", BLOCK_BYTES)
            ctypes.memmove(self._address(block), self._written[block], BLOCK_BYTES)

    def check(self) -> None:
        self._kv.require(self._written)
        for block, due in self._written.items():
            assert ctypes.string_at(self._address(block), BLOCK_BYTES) == due, block

    def _address(self, block: int) -> int:
        return self._kv.region.address + block * BLOCK_BYTES


def live(socket_path: Path, stage: Callable[[str], None], owner: str) -> None:
    """Join, come in, grow, go out when others want in, come back smaller, and leave."""
    reluctance = _Reluctance()
    session = DaemonSession(socket_path, NAME)
    # Some copies are verified and some are not, so that it makes every driver call.
    model = Model(
        NAME,
        session,
        lease_timeout_s=60.0,
        before_swap_out=reluctance,
        verify="sample",
        shares=True,
    )
    for tag, size_bytes in REGIONS.items():
        model.region(tag, size_bytes, capacity_bytes=2 * PAGE_BYTES)
    (runtime,), (cudagraph,) = model.regions("runtime"), model.regions("cudagraph")
    stamps = Stamps(model, owner)
    stamps.adopt(1)
    blocks = _Blocks(model, owner)
    model.declare()
    gate = model.gate

    stage("another is in")
    ahead = threading.Thread(target=model.prefetch)
    for _ in range(2):
        try:
            gate.open_step(0.0)
        except LeaseTimeoutError:
            pass  # taken back before it was granted; the second hurries what is fetched ahead
        else:
            raise AssertionError("there should have been no room")
        if not ahead.is_alive():
            ahead.start()
            until(lambda: gate._state.value == "arriving")

    stage("there is room")
    with model.lasting(60.0):
        gate.open_step()
    ahead.join()
    stamps.check()
    model.resize(runtime, PAGE_BYTES + 1)
    model.resize(runtime, REGIONS["runtime"])
    stamps.check()
    stamps.write(2)
    blocks.write(2)
    gate.set_idle(False)
    session.set_goals(1.0, 0.1)
    session.working(Working([(1, "a request", 5)], [(1, 1)]))
    session.working(Working(ended=[1], steps=1, steps_s=0.01))
    gate.set_idle(True)

    stage("another wants in")  # and this one has been revoked
    stamps.check()
    stamps.write(3)
    blocks.check()
    reluctance.once = True
    gate.close_step()
    stage("it has said that it cannot leave")
    model.swap_out()

    stage("the other is in")
    model.remove_region(cudagraph)
    stamps.forget(cudagraph)
    stage("a third waits behind")
    gate.open_step()  # and is revoked at once
    stamps.check()
    stamps.write(4)
    blocks.check()
    blocks.write(4)
    gate.close_step()

    stage("the third is in")
    gate.open_step()
    stamps.check()
    blocks.check()
    gate.close_step()
    model.share()
    gate.open_step()
    stamps.check()
    gate.close_step()
    model.unshare()
    model.close()
