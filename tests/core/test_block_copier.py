"""Blocks copied between device and host from Python: one by one, and in batches."""

from __future__ import annotations

import ctypes
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from core_bench import device_bytes, resident
from pool_bench import PAGE_BYTES

from gpupool._core import (
    BlockCopier,
    Driver,
    FaultPlan,
    ModelMemory,
    PagePool,
    Region,
    Tag,
    with_faults,
    with_observer,
)
from gpupool.errors import DriverError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

METHODS = ["batch", "each"]
NOT_SUPPORTED = 801


@pytest.fixture
def region(memory: ModelMemory) -> Region:
    return memory.add_region(Tag.kv_cache, PAGE_BYTES)


@pytest.fixture
def host(memory: ModelMemory) -> memoryview:
    """Pinned memory: another region's image."""
    return memoryview(memory.add_region(Tag.weights, PAGE_BYTES).image()).cast("B")


@pytest.fixture
def swapped_in(
    memory: ModelMemory, pool: PagePool, region: Region, host: memoryview
) -> Iterator[None]:
    with resident(pool, memory):
        yield


def address_of(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def cut(seed: int, device: int, host: int) -> list[tuple[int, int, int]]:
    """Blocks of odd sizes, each at a place of its own on either side."""
    draw = random.Random(seed)
    places = [draw.sample(range(200), 200) for _ in range(2)]
    return [
        (device + 10_000 * here, host + 10_000 * there, draw.randrange(5000))
        for here, there in zip(*places, strict=True)
    ]


@pytest.mark.usefixtures("swapped_in")
@pytest.mark.parametrize("chunk_bytes", [700, 1 << 20])
@pytest.mark.parametrize("method", METHODS)
def test_blocks_go_out_and_come_back(
    driver: Driver, region: Region, host: memoryview, method: str, chunk_bytes: int
) -> None:
    copier = BlockCopier(driver, chunk_bytes)
    device = device_bytes(region)
    blocks = cut(1, region.address, address_of(host))
    addresses, places, sizes = zip(*blocks, strict=True)
    content = random.Random(2).randbytes(PAGE_BYTES)
    device[:] = content
    host[:] = bytes(PAGE_BYTES)
    copier.to_host(addresses, places, sizes, method)
    copier.synchronize()
    expected = bytearray(PAGE_BYTES)
    for here, there, size in blocks:
        at = there - address_of(host)
        expected[at : at + size] = content[here - region.address :][:size]
    assert host == expected
    assert device == content
    device[:] = bytes(PAGE_BYTES)
    copier.to_device(addresses, places, sizes, method)
    copier.synchronize()
    back = bytearray(PAGE_BYTES)
    for here, _, size in blocks:
        at = here - region.address
        back[at : at + size] = content[at : at + size]
    assert device == back
    assert host == expected


@pytest.mark.usefixtures("swapped_in")
@pytest.mark.parametrize(
    "words",
    [
        list,
        tuple,
        lambda all: array("Q", all),
        lambda all: array("q", all),
        lambda all: memoryview(array("L", all)),
        lambda all: np.array(all, dtype=np.uint64),
        lambda all: np.array(all, dtype=np.int64),
        lambda all: np.repeat(np.array(all, dtype="<u8"), 2)[::2],
    ],
    ids=["list", "tuple", "Q", "q", "memoryview", "uint64", "int64", "strided"],
)
def test_integers_come_in_many_forms(
    driver: Driver,
    region: Region,
    host: memoryview,
    words: Callable[[list[int]], Sequence[int] | Buffer],
) -> None:
    device = device_bytes(region)
    device[:6] = b"abcdef"
    copier = BlockCopier(driver)
    at = address_of(host)
    copier.to_host(words([region.address + 4, region.address]), words([at, at + 10]), words([2, 3]))
    copier.synchronize()
    assert bytes(host[:14]) == b"ef" + bytes(8) + b"abc" + bytes(1)


MISUSES: dict[str, tuple[object, ...]] = {
    "lengths": ([1], [1, 2], [1]),
    "lengths of sizes": ([1], [1], []),
    "32 bits": (array("I", [1]), [1], [1]),
    "floats": ([1], array("d", [1.0]), [1]),
    "bytes": ([1], [1], b"12345678"),
    "two dimensions": (np.ones((1, 1), dtype=np.uint64), [1], [1]),
    "another order of bytes": (np.ones(1, dtype=">u8"), [1], [1]),
    "no method": ([1], [1], [1], "all"),
}


@pytest.mark.parametrize("arguments", MISUSES.values(), ids=MISUSES.keys())
def test_misuse_is_a_usage_error(driver: Driver, arguments: tuple[object, ...]) -> None:
    copier = BlockCopier(driver, 1)
    for copy in (copier.to_host, copier.to_device):
        with pytest.raises(UsageError):
            copy(*arguments)  # type: ignore[arg-type]


def test_arguments_of_a_wrong_type_are_type_errors(driver: Driver) -> None:
    copier = BlockCopier(driver, 1)
    for wrong in ([-1], ["1"], [1.5], 1, None):
        with pytest.raises(TypeError):
            copier.to_host(wrong, [1], [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        BlockCopier(None, 1)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        BlockCopier(driver, 0)


@pytest.mark.usefixtures("swapped_in")
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_the_calls_it_makes(
    driver: Driver, region: Region, host: memoryview, method: str
) -> None:
    observed = with_observer(driver)
    assert observed.observer is not None
    copier = BlockCopier(observed, 1 << 20)
    addresses = [region.address + 4096 * i for i in range(50)]
    places = [address_of(host) + 4096 * i for i in range(50)]
    copier.to_host(addresses, places, [1000] * 50, method)
    copier.to_device(addresses, places, [999] * 50, method)
    copier.to_device([], [], [], method)
    copier.synchronize()
    calls = observed.observer.calls()
    batch = 1 if method == "batch" else 0
    each = 0 if method == "batch" else 50
    made = {name: calls[name].calls for name in calls if name.startswith("copy_")}
    assert made == {
        "copy_to_device_digest": 0,
        "copy_batch_to_device": batch,
        "copy_batch_to_host": batch,
        "copy_to_device": each,
        "copy_to_host": each,
    }
    amounts = observed.observer.amounts()
    assert (amounts["to_host_bytes"], amounts["to_device_bytes"]) == (50_000, 49_950)


@pytest.mark.usefixtures("swapped_in")
def test_a_driver_without_batches_is_an_error_of_its_own(
    driver: Driver, region: Region, host: memoryview
) -> None:
    plan = FaultPlan()
    copier = BlockCopier(with_faults(driver, plan), 1 << 20)
    blocks = ([region.address], [address_of(host)], [100])
    device_bytes(region)[:100] = b"x" * 100
    host[:100] = bytes(100)
    plan.arm(1, NOT_SUPPORTED)
    with pytest.raises(DriverError) as caught:
        copier.to_host(*blocks, "batch")
    assert (caught.value.call, caught.value.status) == ("copy_batch_to_host", NOT_SUPPORTED)
    copier.synchronize()
    assert bytes(host[:100]) == bytes(100)  # not copied by another way
    copier.to_host(*blocks, "each")
    copier.synchronize()
    assert bytes(host[:100]) == b"x" * 100


@pytest.mark.usefixtures("swapped_in")
def test_the_host_refuses_what_a_gpu_leaves_to_chance(
    driver: Driver, region: Region, host: memoryview
) -> None:
    copier = BlockCopier(driver, 1 << 20)
    at = address_of(host)
    for copy, device, place in (
        (copier.to_host, [region.address, region.address + 99], [at, at + 99]),
        (copier.to_device, [region.address, region.address + 99], [at, at + 99]),
        (copier.to_host, [region.address], [id(object)]),
        (copier.to_device, [0], [at]),
    ):
        with pytest.raises(DriverError, match="CUDA_ERROR_INVALID_VALUE"):
            copy(device, place, [100] * len(device), "batch")
    copier.synchronize()
