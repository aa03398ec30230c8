"""A page that models of several processes have is found wrong."""

from __future__ import annotations

import os

from daemon_bench import PAGE_BYTES, StartDaemon, until
from test_daemon_sharing import PAGES, fine_tune, has, weights

from gpupool._core import Region
from gpupool.daemon import client
from gpupool.model import Model


def flip(session: client.DaemonSession, region: Region, page: int) -> None:
    """A bit of a page, behind the back of all who have it mapped, as faulty memory does."""
    number = session._table.numbers([region.page_handles[page]])[0]
    fd = session._table.page(number).export_fd()
    try:
        os.pwrite(fd, bytes([os.pread(fd, 1, 9)[0] ^ 1]), 9)
    finally:
        os.close(fd)


def test_a_page_that_is_found_wrong_serves_no_other_step(start_daemon: StartDaemon) -> None:
    """Whatever is left of the turn of who has it, which is told at once."""
    daemon = start_daemon(pages=2 * PAGES, options=("--min-tokens", "1000"))
    session = client.DaemonSession(daemon.socket_path, "tune 1")
    one = Model("tune 1", session, shares=True, min_steps=1000)
    first = one.region("weights", PAGES * PAGE_BYTES)
    memoryview(first.image())[:] = weights(1)  # type: ignore[arg-type]
    first.adopt_image()
    one.share()
    other, second = fine_tune(daemon.socket_path, 2)
    one.gate.set_idle(False)
    with one.resident():
        flip(session, first, 1)
        assert has(other, second, 2)  # and the daemon has heard of the page, before that arrived
        until(lambda: one.gate._distrusted)
    for _ in range(3):
        assert has(one, first, 1)
    assert one.swap_ins == 2
    status = daemon.status()
    assert [model.damaged for model in status.models] == [1, 1]
    said = {refusal.model: refusal.message for refusal in status.refusals}
    assert "leaves before its next step" in said["tune 1"]
    assert "that other models may have" in said["tune 2"]
    for model in (one, other):
        model.close()
    daemon.until_ledger(free=2 * PAGES, host_bytes=0)
