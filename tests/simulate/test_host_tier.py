"""Host memory that cannot hold all weights, and the disk behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.schedule.work import Batch, Device, Request
from gpupool.simulate.holding import Sizes
from gpupool.simulate.host_tier import HostTier
from gpupool.simulate.residency import ResidentLoader
from gpupool.simulate.simulation import Hardware, simulate
from gpupool.simulate.trace import Arrival


def test_who_was_used_least_recently_leaves() -> None:
    host = HostTier(20.0, 2.0)
    assert [host.read(model, 10.0) for model in (0, 1, 0, 2, 0, 1)] == [5, 5, 0, 5, 0, 5]


def test_what_never_fits_is_read_each_time_and_nobody_leaves_for_it() -> None:
    host = HostTier(20.0, 2.0)
    assert host.read(1, 10.0) == 5
    assert [host.read(0, 30.0) for _ in range(2)] == [15, 15]
    assert host.read(1, 10.0) == 0


@given(st.lists(st.floats(0, 4), max_size=20), st.floats(0.1, 10))
def test_a_read_takes_as_long_in_parts_as_at_once(parts_s: list[float], rate: float) -> None:
    host = HostTier(20.0, rate)
    took_s = sum(host.read(0, 10.0, part_s) for part_s in parts_s)
    assert took_s == pytest.approx(min(sum(parts_s), 10.0 / rate))
    assert host.read(0, 10.0) == pytest.approx(10.0 / rate - took_s, abs=1e-6)
    assert host.read(0, 10.0) == 0


def test_a_fetch_from_disk_goes_no_further_than_the_time_that_there_is() -> None:
    sizes = dict.fromkeys(range(2), Sizes(10.0, 1.0, 0.0))
    host = HostTier(20.0, 1.0)  # 10 s from disk, and 1 s over the link
    loader = ResidentLoader(
        sizes, capacity_bytes=40.0, link_bytes_per_s=10.0, switch_s_min=0.0, host=host
    )
    device, now, later = Device(0), *(Batch(k, [Request(k, k, 0.0, 1)]) for k in range(2))
    assert loader.switch_s(device, now, ()) == 10
    for _ in range(4):
        loader.computed(device, now, 1.0, 0, (1,))
    assert loader.switch_s(device, later, (0,)) == pytest.approx(6), "4 of 10 s are read"
    assert loader.switch_s(device, now, (1,)) == 0


@pytest.mark.parametrize("policy", ["fcfs", "aegaeon", "deadlines"])
def test_no_policy_reads_faster_than_the_disk(policy: str) -> None:
    """Two models of 15.2 GB, one of which fits the device, and one host memory: 101 s a switch."""
    trace = [Arrival(2.0 * turn, "ab"[turn % 2], 10, 400) for turn in range(10)]
    hardware = Hardware(1, device_bytes=20e9, host_bytes=16e9, disk_bytes_per_s=0.15e9)
    found = simulate(trace, policy, hardware)
    assert found.switches > 1
    assert found.duration_s > 101 * found.switches


def test_groups_share_the_memory() -> None:
    """Two models a group, and memory for two in all."""
    trace = [Arrival(20.0 * turn, "abcd"[turn % 4], 10, 5) for turn in range(12)]
    hardware = Hardware(
        devices=2, device_bytes=20e9, host_bytes=32e9, disk_bytes_per_s=3e9, groups=2
    )
    found = simulate(trace, "fcfs", hardware)
    assert found.ttft_s[0] > 5, "each is read from disk each time"
    assert simulate(trace, "fcfs", replace(hardware, host_bytes=64e9)).ttft_s[0] < 2
