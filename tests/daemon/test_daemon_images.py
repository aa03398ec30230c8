"""Host images and the daemon's account of them: what is counted is what is pinned and mapped."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from daemon_bench import Daemon, PuppetError, StartDaemon, until

from gpupool._core import FaultPlan, Region, open_host_driver, with_faults
from gpupool.daemon import client
from gpupool.daemon.client import DaemonSession
from gpupool.errors import RefusedError, UsageError
from gpupool.model import Model

IMAGE_BYTES = 8 << 20
UNKNOWN = 999


def mapped_bytes(process: int | str = "self") -> int:
    """Of images, by the system's own account."""
    maps = Path(f"/proc/{process}/maps").read_text()
    spans = re.findall(r"^(\w+)-(\w+) .*memfd:gpupool-image", maps, re.MULTILINE)
    return sum(int(end, 16) - int(begin, 16) for begin, end in spans)


@pytest.fixture
def until_counted(daemon: Daemon) -> Callable[[int], None]:
    """Wait until the daemon counts so much, which this process must have mapped at that time."""
    gc.collect()
    before = mapped_bytes()  # what other tests have lost

    def until_counted(size_bytes: int) -> None:
        assert mapped_bytes() - before == size_bytes
        until(lambda: daemon.status().host_bytes == size_bytes, f"{size_bytes} bytes counted")

    return until_counted


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> Daemon:
    """With room for one image and a small one."""
    return start_daemon(options=("--host-budget-bytes", str(IMAGE_BYTES + 4096)))


Counted = Callable[[int], None]


def member(daemon: Daemon, name: str = "a") -> Model:
    return Model(name, DaemonSession(daemon.socket_path, name), lease_timeout_s=60.0)


def test_a_removed_region_that_is_held_holds_no_host_memory(
    daemon: Daemon, until_counted: Counted
) -> None:
    model = member(daemon)
    regions = []
    for _ in range(6):
        region = model.region("weights", IMAGE_BYTES)
        np.asarray(region.image())[:] = 7
        until_counted(IMAGE_BYTES)
        model.remove_region(region)
        until_counted(0)
        regions.append(region)
    for region in regions:
        assert region.image_bytes == 0
        with pytest.raises(UsageError, match=r"no image: .* removed, or its model closed"):
            region.image()
    model.close()


VIEWS: dict[str, Callable[[Region], object]] = {
    "buffer": lambda region: region.image(),
    "memoryview": lambda region: memoryview(region.image()),  # type: ignore[arg-type]
    "numpy": lambda region: np.asarray(region.image())[5:6],
}


@pytest.mark.parametrize("kind", VIEWS)
def test_an_image_that_is_looked_at_stays_and_stays_counted(
    daemon: Daemon, until_counted: Counted, kind: str
) -> None:
    model = member(daemon)
    region = model.region("weights", IMAGE_BYTES)
    view = VIEWS[kind](region)
    model.remove_region(region)
    np.asarray(view)[:] = 7
    assert np.asarray(view)[-1] == 7
    with pytest.raises(RefusedError, match="4096 of the host budget are free"):
        model.region("weights", IMAGE_BYTES)
    until_counted(IMAGE_BYTES)
    del view
    region = model.region("weights", IMAGE_BYTES)  # in the room that it has left
    until_counted(IMAGE_BYTES)
    model.close()
    until_counted(0)
    with pytest.raises(UsageError, match="no image"):
        region.image()


ACTS: dict[str, Callable[[Model, Region], object]] = {
    "resize": lambda model, other: model.resize(other, 8192),
    "remove_region": lambda model, other: model.remove_region(other),
    "close": lambda model, _: model.close(),
}


@pytest.mark.parametrize("act", [*ACTS, "swap_out"])
def test_what_the_model_does_next_takes_it_off_the_account(
    daemon: Daemon, until_counted: Counted, act: str
) -> None:
    model = member(daemon)
    region = model.region("weights", IMAGE_BYTES)
    other = model.region("workspace", 4096, capacity_bytes=8192)
    view = region.image()
    model.remove_region(region)
    if act == "swap_out":
        with model.resident():
            del view
        model.swap_out()
    else:
        del view
        ACTS[act](model, other)
    until_counted(0)
    model.close()


@pytest.mark.parametrize("leaves", ["remove_region", "close"])
def test_an_image_that_the_driver_does_not_let_go_stays_counted(
    daemon: Daemon, until_counted: Counted, leaves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = FaultPlan()
    monkeypatch.setattr(client, "open_driver", lambda _: with_faults(open_host_driver(), plan))
    model = member(daemon)
    region, other = model.region("weights", 5000), model.region("runtime", 100)
    plan.arm(1, UNKNOWN, releases=True)  # which is the return of the first image
    if leaves == "remove_region":
        model.remove_region(region)
        until_counted(8192 + 4096)
        assert other.image_bytes == 4096
    model.close()
    assert plan.injected == 1
    until_counted(8192)
    with pytest.raises(RefusedError, match="'a' is in the pool until its process ends"):
        member(daemon)


def test_a_closed_model_that_is_held_holds_no_host_memory(
    daemon: Daemon, until_counted: Counted
) -> None:
    model = member(daemon)
    regions = [model.region("weights", 5000), model.region("kv_cache", IMAGE_BYTES // 2)]
    with model.resident(writes=True):
        until_counted(8192 + IMAGE_BYTES // 2)
    model.close()
    until_counted(0)
    until(lambda: not daemon.status().models)
    assert [region.image_bytes for region in regions] == [0, 0]
    assert model.footprint_bytes == 0
    with pytest.raises(UsageError, match="the model is closed"):
        model.region("weights", 1)
    again = member(daemon)
    again.region("weights", IMAGE_BYTES)
    again.close()


@pytest.mark.parametrize("looks", [False, True])
def test_what_a_closed_model_leaves_counts_until_its_process_ends(
    daemon: Daemon, looks: bool
) -> None:
    puppet = daemon.model("a", weights=5000, runtime=100)
    if looks:
        puppet.do("look", "weights")
    puppet.cycle("weights", 9)
    puppet.do("close")
    left = 8192 if looks else 0
    assert mapped_bytes(puppet.process.pid) == left
    daemon.until_ledger(free=4, host_bytes=left)
    if looks:
        assert puppet.do("seen") == 9
        assert [model.state for model in daemon.status().models] == ["out"]
        with pytest.raises(PuppetError, match="'a' is in the pool until its process ends"):
            daemon.puppet().do("join", "a")
    puppet.kill()
    daemon.until_ledger(free=4, host_bytes=0)
    daemon.model("a", weights=IMAGE_BYTES).do("close")
