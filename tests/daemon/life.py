"""The whole life of a client, in stages at which the test has the other clients do something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from daemon_bench import PAGE_BYTES
from stamps import Stamps

from gpupool.daemon.client import DaemonSession
from gpupool.errors import LeaseTimeoutError
from gpupool.model import Model

NAME = "mortal"
REGIONS = {
    "weights": PAGE_BYTES - 5000,
    "runtime": 70_000,
    "cudagraph": 4096,
    "kv_cache": PAGE_BYTES,
    "workspace": PAGE_BYTES // 2,
}
PAGES = len(REGIONS)
KEPT = "it cannot leave this once"


class _Reluctance:
    """Lets the next swap-out fail once."""

    once = False

    def __call__(self) -> None:
        if self.once:
            self.once = False
            raise RuntimeError(KEPT)


def live(socket_path: Path, stage: Callable[[str], None], owner: str) -> None:
    """Join, come in, go out when others want in, come back, and leave in good order."""
    reluctance = _Reluctance()
    session = DaemonSession(socket_path, NAME)
    model = Model(NAME, session, lease_timeout_s=60.0, before_swap_out=reluctance)
    for tag, size_bytes in REGIONS.items():
        model.region(tag, size_bytes)
    stamps = Stamps(model, owner)
    stamps.adopt(1)
    model.declare()
    gate = model.gate

    stage("another is in")
    try:
        gate.open_step(0.0)
    except LeaseTimeoutError:
        pass  # taken back before it was granted
    else:
        raise AssertionError("there should have been no room")

    stage("there is room")
    gate.open_step()
    stamps.check()
    stamps.write(2)
    gate.set_idle(False)
    gate.set_idle(True)

    stage("another wants in")  # and this one has been revoked
    stamps.check()
    stamps.write(3)
    reluctance.once = True
    gate.close_step()
    stage("it has said that it cannot leave")
    model.swap_out()

    stage("the other is in")
    stage("a third waits behind")
    gate.open_step()  # and is revoked at once
    stamps.check()
    stamps.write(4)
    gate.close_step()

    stage("the third is in")
    gate.open_step()
    stamps.check()
    gate.close_step()
    model.close()
