"""Regions in Python: swaps, images, DLPack and digests."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import pytest
from core_bench import device_bytes, resident
from pool_bench import PAGE_BYTES

from gpupool import _core
from gpupool._core import Driver, FaultPlan, ModelMemory, PagePool, Tag, with_faults
from gpupool.errors import DriverError, UsageError

OUT_OF_MEMORY = 2


def test_a_region_comes_back_as_it_was(pool: PagePool, memory: ModelMemory) -> None:
    weights = memory.add_region(Tag.weights, PAGE_BYTES + 100)
    cache = memory.add_region(Tag.kv_cache, 4096)
    assert (weights.tag, weights.bytes, weights.span_bytes) == (
        Tag.weights,
        PAGE_BYTES + 100,
        2 * PAGE_BYTES,
    )
    assert memory.pages_needed == 3
    view = memoryview(weights.image())
    assert (len(view), view.readonly, view.format) == (PAGE_BYTES + 100, False, "B")
    view[:5] = b"hello"
    weights.adopt_image()
    assert weights.saved_bytes == PAGE_BYTES + 100
    with resident(pool, memory):
        assert memory.resident
        assert not memory.torn
        assert bytes(device_bytes(weights)[:5]) == b"hello"
        device_bytes(cache)[10:13] = b"abc"
        cache.mark_written([(10, 3)])
        with pytest.raises(UsageError):
            memory.swap_in([])
    assert not memory.resident
    assert cache.saved_bytes == 3
    del view
    pages = pool.acquire(2, 3)
    report = memory.swap_in([pool.page(page) for page in pages])
    assert bytes(device_bytes(cache)[10:13]) == b"abc"
    assert report.pages == 3
    assert report.copied_bytes == PAGE_BYTES + 100 + 3
    assert report.filled_bytes > 0
    assert 0 <= report.map_s <= report.total_s
    assert 0 <= report.copy_s <= report.total_s
    memory.swap_out()


def test_an_image_outlives_its_model(driver: Driver) -> None:
    memory = ModelMemory(driver, PAGE_BYTES)
    region = memory.add_region(Tag.weights, 64)
    image = memoryview(region.image())
    del memory, region
    gc.collect()
    image[:] = bytes(range(64))
    assert bytes(image) == bytes(range(64))


def test_a_swap_that_fails_is_undone_or_torn(driver: Driver) -> None:
    plan = FaultPlan()
    faulty = with_faults(driver, plan)
    pool, memory = PagePool(faulty, 2 * PAGE_BYTES, PAGE_BYTES), ModelMemory(faulty, PAGE_BYTES)
    memory.add_region(Tag.weights, PAGE_BYTES)
    pages = [pool.page(page) for page in pool.acquire(1, 1)]
    plan.arm(1, OUT_OF_MEMORY)
    with pytest.raises(DriverError):
        memory.swap_in(pages)
    assert (memory.resident, memory.torn) == (False, False)
    plan.arm(3, OUT_OF_MEMORY, persistent=True)  # the way back is barred as well
    with pytest.raises(DriverError):
        memory.swap_in(pages)
    plan.disarm()
    assert (memory.resident, memory.torn) == (False, True)
    memory.swap_out()
    memory.swap_in(pages)
    memory.swap_out()


PyCapsule_IsValid = ctypes.pythonapi.PyCapsule_IsValid
PyCapsule_IsValid.argtypes = (ctypes.py_object, ctypes.c_char_p)
PyCapsule_GetPointer = ctypes.pythonapi.PyCapsule_GetPointer
PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
PyCapsule_GetPointer.restype = ctypes.c_void_p
PyCapsule_SetName = ctypes.pythonapi.PyCapsule_SetName
PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)


class DLTensor(ctypes.Structure):
    """What DLPack's header says of a tensor, without versions."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
    )


def is_reserved(address: int) -> bool:
    """Whether some mapping of this process covers it; a reservation shows without access."""
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        for line in maps:
            start, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
            if start <= address < end:
                return True
    return False


def test_a_capsule_nobody_took_frees_its_tensor(driver: Driver) -> None:
    memory = ModelMemory(driver, PAGE_BYTES)
    region = memory.add_region(Tag.workspace, 100)
    address = region.address
    capsule: Any = region.__dlpack__(stream=None, max_version=(0, 8), dl_device=(1, 0), copy=False)
    assert PyCapsule_IsValid(capsule, b"dltensor")
    tensor = DLTensor.from_address(PyCapsule_GetPointer(capsule, b"dltensor"))
    assert (tensor.data, tensor.device_type, tensor.device_id) == (address, 1, 0)
    stride = ctypes.c_int64.from_address(tensor.strides).value
    assert (tensor.ndim, tensor.shape[0], stride, tensor.byte_offset) == (1, 100, 1, 0)
    assert (tensor.code, tensor.bits, tensor.lanes) == (1, 8, 1)
    del memory, region
    gc.collect()
    assert is_reserved(address)
    del capsule
    assert not is_reserved(address)


def test_a_capsule_that_was_taken_leaves_its_tensor_to_the_taker(driver: Driver) -> None:
    memory = ModelMemory(driver, PAGE_BYTES)
    region = memory.add_region(Tag.workspace, 100)
    address = region.address
    capsule: Any = region.__dlpack__()
    pointer = PyCapsule_GetPointer(capsule, b"dltensor")
    assert PyCapsule_SetName(capsule, b"used_dltensor") == 0  # as a consumer does
    del capsule, memory, region
    gc.collect()
    assert is_reserved(address)
    DLTensor.from_address(pointer).deleter(pointer)
    assert not is_reserved(address)


@pytest.mark.parametrize(
    "asked", [{"copy": True}, {"dl_device": (2, 0)}, {"dl_device": (1, 1)}], ids=str
)
def test_a_region_is_shown_where_it_is(memory: ModelMemory, asked: dict[str, Any]) -> None:
    region = memory.add_region(Tag.weights, 100)
    assert region.__dlpack_device__() == (1, 0)
    with pytest.raises(BufferError, match="never copied"):
        region.__dlpack__(**asked)


def test_torch_and_the_region_see_the_same_bytes(pool: PagePool, memory: ModelMemory) -> None:
    torch = pytest.importorskip("torch")
    region = memory.add_region(Tag.weights, 100)
    with resident(pool, memory):
        tensor = torch.from_dlpack(region)
        assert (tensor.data_ptr(), tensor.shape) == (region.address, (100,))
        tensor.fill_(7)
        assert bytes(device_bytes(region)) == bytes([7]) * 100


def test_the_digest_of_a_copy_is_that_of_its_source() -> None:
    source, destination = bytes(range(256)) * 16, bytearray(4096)
    assert _core.copy_with_digest(destination, source) == _core.digest(source)
    assert destination == source
    assert _core.digest(source, first_word=1) != _core.digest(source)
    parts = _core.digest(source[:2048]) + _core.digest(source[2048:], first_word=256)
    assert parts % 2**64 == _core.digest(source)


@pytest.mark.parametrize(
    ("destination", "source", "error"),
    [
        (bytearray(7), bytes(8), UsageError),
        (bytes(8), bytes(8), BufferError),
        (bytearray(8), memoryview(bytes(16))[::2], BufferError),
        (memoryview(bytearray(16))[::2], bytes(8), BufferError),
        (None, bytes(8), TypeError),
        (bytearray(8), 8, TypeError),
    ],
)
def test_bytes_that_cannot_be_copied_are_refused(
    destination: Any, source: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        _core.copy_with_digest(destination, source)


def test_overlapping_copies_and_scattered_bytes_have_no_digest() -> None:
    whole = bytearray(range(64))
    for begin, end in ((0, 32), (16, 48)):
        with pytest.raises(UsageError, match="overlaps"):
            _core.copy_with_digest(memoryview(whole)[8:40], memoryview(whole)[begin:end])
    assert whole == bytearray(range(64))
    with pytest.raises(BufferError):
        _core.digest(memoryview(whole)[::2])
    with pytest.raises(TypeError):
        _core.digest(None)
