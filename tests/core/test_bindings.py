"""The bindings of the C++ core: what they hand over, what they refuse, and as which exception."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator

import pytest
from core_bench import OPEN, descriptor, memfd
from pool_bench import PAGE_BYTES

from gpupool._core import (
    Driver,
    FaultPlan,
    ModelMemory,
    Page,
    PagePool,
    Tag,
    open_cuda_driver,
    with_faults,
)
from gpupool.errors import DriverError, HostMemoryError, UsageError

OUT_OF_MEMORY = 2


@pytest.fixture(autouse=True)
def close_descriptors() -> Iterator[None]:
    yield
    while OPEN:
        os.close(OPEN.pop())


def test_a_driver_says_what_it_is(driver: Driver) -> None:
    assert (driver.kind, driver.ordinal, driver.page_granularity()) == ("host", 0, 2 << 20)
    assert with_faults(driver, FaultPlan()).kind == "host"


def test_without_a_driver_library_cuda_is_an_error_that_says_so() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(RuntimeError, match=r"libcuda\.so\.1 was not found"):
            open_cuda_driver(0)
    else:
        with pytest.raises((RuntimeError, DriverError)):
            open_cuda_driver(-1)


# Each with an argument of a type that it does not take.
WRONG_TYPES: dict[str, Callable[[Driver, PagePool, ModelMemory], object]] = {
    "open_cuda_driver": lambda d, p, m: open_cuda_driver("0"),
    "with_faults, no driver": lambda d, p, m: with_faults(None, FaultPlan()),
    "with_faults, no plan": lambda d, p, m: with_faults(d, None),
    "arm": lambda d, p, m: FaultPlan().arm(-1, 2),
    "Driver": lambda d, p, m: Driver(),
    "Page": lambda d, p, m: Page(),
    "import_fd, no driver": lambda d, p, m: Page.import_fd(None, 0, 1),
    "import_fd": lambda d, p, m: Page.import_fd(d, "0", 1),
    "PagePool, no driver": lambda d, p, m: PagePool(None, 1, 1),
    "PagePool, negative": lambda d, p, m: PagePool(d, -1, 1),
    "acquire": lambda d, p, m: p.acquire(None, 1),
    "acquire, negative": lambda d, p, m: p.acquire(1, -1),
    "give_back": lambda d, p, m: p.give_back(1, [None]),
    "give_back_all": lambda d, p, m: p.give_back_all("1"),
    "page": lambda d, p, m: p.page(-1),
    "owned": lambda d, p, m: p.owned(1.5),
    "ModelMemory": lambda d, p, m: ModelMemory(None, PAGE_BYTES),
    "add_region": lambda d, p, m: m.add_region("weights", 1),
    "add_region, negative": lambda d, p, m: m.add_region(Tag.weights, -1),
    "swap_in": lambda d, p, m: m.swap_in([0]),
    "mark_written": lambda d, p, m: m.add_region(Tag.weights, 1).mark_written([(0, -1)]),
    "mark_written, no pair": lambda d, p, m: m.add_region(Tag.weights, 1).mark_written([0]),
    "__dlpack__": lambda d, p, m: m.add_region(Tag.weights, 1).__dlpack__(copy="no"),
}


@pytest.mark.parametrize("call", WRONG_TYPES.values(), ids=WRONG_TYPES.keys())
def test_arguments_of_a_wrong_type_are_type_errors_and_change_nothing(
    driver: Driver,
    pool: PagePool,
    memory: ModelMemory,
    call: Callable[[Driver, PagePool, ModelMemory], object],
) -> None:
    with pytest.raises(TypeError):
        call(driver, pool, memory)
    assert (pool.free_pages, pool.created_pages) == (4, 0)
    assert not memory.resident


# Each breaks a precondition; the fixtures are a pool of four pages and a model with nothing in it.
MISUSES: dict[str, Callable[[Driver, PagePool, ModelMemory], object]] = {
    "no page fits": lambda d, p, m: PagePool(d, PAGE_BYTES - 1, PAGE_BYTES),
    "odd page size": lambda d, p, m: PagePool(d, 8 * PAGE_BYTES, 4096),
    "too many pages": lambda d, p, m: p.acquire(1, 5),
    "not its page": lambda d, p, m: p.give_back(1, [0]),
    "no such page": lambda d, p, m: p.give_back(1, [99]),
    "page of nobody": lambda d, p, m: p.page(99),
    "odd page of a model": lambda d, p, m: ModelMemory(d, 4096),
    "empty region": lambda d, p, m: m.add_region(Tag.weights, 0),
    "file too small": lambda d, p, m: m.add_region(Tag.weights, 4096, image_fd=memfd(1)),
    "run wraps around": lambda d, p, m: m.add_region(Tag.weights, 64).mark_written(
        [(2**64 - 1, 2)]
    ),
    "run too long": lambda d, p, m: m.add_region(Tag.weights, 64).mark_written([(0, 65)]),
    "image of a workspace": lambda d, p, m: m.add_region(Tag.workspace, 64).image(),
    "adopted workspace": lambda d, p, m: m.add_region(Tag.workspace, 64).adopt_image(),
    "out already": lambda d, p, m: m.swap_out(),
}


@pytest.mark.parametrize("call", MISUSES.values(), ids=MISUSES.keys())
def test_misuse_is_a_usage_error_and_changes_nothing(
    driver: Driver,
    pool: PagePool,
    memory: ModelMemory,
    call: Callable[[Driver, PagePool, ModelMemory], object],
) -> None:
    with pytest.raises(UsageError) as caught:
        call(driver, pool, memory)
    assert str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert (pool.free_pages, pool.created_pages) == (4, 0)
    assert not memory.resident


def test_a_driver_error_has_its_call_and_its_status(driver: Driver) -> None:
    plan = FaultPlan()
    faulty = with_faults(driver, plan)
    pool = PagePool(faulty, 4 * PAGE_BYTES, PAGE_BYTES)
    assert plan.injected == 0
    plan.arm(2, OUT_OF_MEMORY)
    with pytest.raises(DriverError, match="page_create failed: CUDA_ERROR_OUT_OF_MEMORY") as caught:
        pool.acquire(1, 3)
    assert (caught.value.call, caught.value.status) == ("page_create", OUT_OF_MEMORY)
    assert (plan.injected, pool.free_pages) == (1, 4)
    plan.arm(1, 999, persistent=True)
    for _ in range(3):
        with pytest.raises(DriverError):
            faulty.page_granularity()
    assert plan.injected == 3
    plan.disarm()
    assert faulty.page_granularity() == 2 << 20


def test_host_memory_that_the_system_refuses_is_its_own_error(memory: ModelMemory) -> None:
    with pytest.raises((HostMemoryError, DriverError)):
        memory.add_region(Tag.weights, 1 << 60)
    with pytest.raises(HostMemoryError):
        # A read-only file cannot be mapped for writing.
        fd = os.open(f"/proc/self/fd/{memfd(PAGE_BYTES)}", os.O_RDONLY)
        with descriptor(fd):
            memory.add_region(Tag.weights, PAGE_BYTES, image_fd=fd)
    assert memory.pages_needed == 0


def test_pages_travel_as_descriptors(driver: Driver, pool: PagePool) -> None:
    page = pool.page(pool.acquire(7, 1)[0])
    assert page.bytes == PAGE_BYTES
    with descriptor(page.export_fd()) as fd:
        assert Page.import_fd(driver, fd, PAGE_BYTES).bytes == PAGE_BYTES
        os.fstat(fd)  # still the caller's
    for wrong in (-1, memfd(PAGE_BYTES)):
        with pytest.raises(DriverError, match="page_import failed"):
            Page.import_fd(driver, wrong, PAGE_BYTES)


def test_the_pool_keeps_its_books(pool: PagePool) -> None:
    mine, others = sorted(pool.acquire(1, 2)), pool.acquire(2, 1)
    assert (pool.owned(1), pool.owned(2), pool.owned(3)) == (mine, others, [])
    assert (pool.total_pages, pool.page_bytes) == (4, PAGE_BYTES)
    assert (pool.free_pages, pool.created_pages) == (1, 3)
    with pytest.raises(UsageError):
        pool.give_back(2, mine)
    pool.give_back(1, mine[:1])
    assert pool.give_back_all(1) == mine[1:]
    assert (pool.owned(1), pool.owned(2), pool.free_pages) == ([], others, 3)
