"""The life of a client whose images do not fit beside those of another, in stages of the test's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from daemon_bench import PAGE_BYTES, until
from stamps import Stamps

from gpupool.daemon.client import DaemonSession
from gpupool.model import Model

NAME = "mortal"
WEIGHTS_BYTES = 2 * PAGE_BYTES - 5000
REGIONS = {"weights": WEIGHTS_BYTES, "runtime": 70_000}


def live(socket_path: Path, stage: Callable[[str], None], owner: str) -> None:
    """Have the other park, park for it, come back, park what is written already, and leave."""
    model = Model(NAME, DaemonSession(socket_path, NAME), lease_timeout_s=60.0)
    for tag, size_bytes in REGIONS.items():
        model.region(tag, size_bytes)
    stamps = Stamps(model, owner)
    stamps.adopt(1)
    model.declare()
    for generation in (1, 2):
        with model.resident():
            stamps.check()
            if generation == 1:
                stamps.write(generation)
        stage("the other wants in")
        until(lambda: model.parked_bytes == sum(REGIONS.values()))
    stage("it is parked")
    with model.resident():
        stamps.check()
    stage("the other wants in")
    until(lambda: model.parked_bytes == sum(REGIONS.values()))
    model.close()
