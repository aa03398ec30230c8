"""Digests of many runs of device memory at a time, behind what a stream does."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
from core_bench import device_bytes, resident
from pool_bench import PAGE_BYTES

from gpupool import digest
from gpupool._core import (
    BlockCopier,
    Driver,
    FaultPlan,
    ModelMemory,
    PagePool,
    Region,
    RunDigester,
    Tag,
    with_faults,
    with_observer,
)
from gpupool.errors import DriverError, UsageError


@pytest.fixture
def region(memory: ModelMemory) -> Region:
    return memory.add_region(Tag.kv_cache, PAGE_BYTES)


@pytest.fixture(autouse=True)
def _swapped_in(memory: ModelMemory, pool: PagePool, region: Region) -> Iterator[None]:
    with resident(pool, memory):
        yield


def runs_of(chooser: random.Random, count: int) -> list[tuple[int, int]]:
    """(offset, size) in any order; they may overlap."""
    sizes = [chooser.randint(1, 1 << chooser.randint(1, 14)) for _ in range(count)]
    return [(chooser.randrange(PAGE_BYTES - size), size) for size in sizes]


def words(digests: bytes) -> list[int]:
    return list(array("Q", digests))


def test_digests_are_of_what_the_device_has(driver: Driver, region: Region) -> None:
    chooser = random.Random(1)
    copier, digester = BlockCopier(driver), RunDigester(driver)
    for _ in range(30):
        content = chooser.randbytes(PAGE_BYTES)
        device_bytes(region)[:] = content
        runs = runs_of(chooser, chooser.choice([1, 3, 400]))
        addresses = np.array([region.address + at for at, _ in runs], np.uint64)
        number = digester.enqueue(addresses, [size for _, size in runs], copier.stream)
        copier.synchronize()
        assert words(digester.take(number)) == [digest(content[at : at + n]) for at, n in runs]


def test_several_are_in_flight_and_the_last_ends_those_before(
    driver: Driver, region: Region
) -> None:
    content = random.Random(2).randbytes(PAGE_BYTES)
    device_bytes(region)[:] = content
    copier, digester = BlockCopier(driver), RunDigester(driver)
    numbers = [digester.enqueue([region.address + at], [100], copier.stream) for at in range(9)]
    copier.synchronize()
    for at in (0, 1, 4, 8):
        assert words(digester.take(numbers[at])) == [digest(content[at : at + 100])]
    for at in (0, 3, 8):
        with pytest.raises(UsageError, match="taken already"):
            digester.take(numbers[at])


def test_memory_is_used_again_and_goes_in_the_end(driver: Driver, region: Region) -> None:
    observed = with_observer(driver)
    observer = observed.observer
    copier, digester = BlockCopier(observed), RunDigester(observed)
    for size in (1, 2000, 1, 1999, 7):
        number = digester.enqueue([region.address] * size, [8] * size, copier.stream)
        copier.synchronize()
        assert len(digester.take(number)) == 8 * size
    assert observer.calls()["host_register"].calls == 2  # for few, and for many
    assert observer.amounts()["digested_bytes"] == 8 * (1 + 2000 + 1 + 1999 + 7)
    digester.enqueue([region.address], [8], copier.stream)
    del digester  # in flight or not
    assert observer.amounts()["registered_bytes"] == 0


def test_every_driver_call_fails_once_and_the_next_works(driver: Driver, region: Region) -> None:
    device_bytes(region)[:8] = b"abcdefgh"
    for nth in count(1):
        plan = FaultPlan()
        failing = with_faults(driver, plan)
        copier, digester = BlockCopier(failing), RunDigester(failing)
        plan.arm(nth, 2)
        try:
            number = digester.enqueue([region.address], [8], copier.stream)
        except DriverError as error:
            assert error.status == 2
            number = digester.enqueue([region.address], [8], copier.stream)
        plan.disarm()
        copier.synchronize()
        assert words(digester.take(number)) == [digest(b"abcdefgh")]
        if plan.injected == 0:
            break
    assert nth == 3  # the memory, the digests


def test_misuse_is_a_usage_error(driver: Driver, region: Region) -> None:
    copier, digester = BlockCopier(driver), RunDigester(driver)
    stream = copier.stream
    for addresses, sizes in (([], []), ([region.address], []), (array("I", [1]), [1])):
        with pytest.raises(UsageError):
            digester.enqueue(addresses, sizes, stream)
    for at, size in ((region.address, 0), (4096, 8)):
        with pytest.raises(DriverError):
            digester.enqueue([at], [size], stream)
    with pytest.raises(UsageError):
        digester.take(1)
    with pytest.raises(TypeError):
        RunDigester(None)  # type: ignore[arg-type]
