"""A region as an array or tensor of other libraries, by each of their protocols."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from pool_bench import PAGE_BYTES, memory_of, pool_of

from gpupool import Model

CPU = (1, 0)  # kDLCPU


class VersionedTensor(ctypes.Structure):
    """The beginning of DLManagedTensorVersioned, and its tensor, as dlpack.h has them."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ("flags", ctypes.c_uint64),
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def name_of(capsule: object) -> str:
    named = ctypes.pythonapi.PyCapsule_GetName
    named.restype, named.argtypes = ctypes.c_char_p, [ctypes.py_object]
    name: bytes = named(capsule)
    return name.decode()


@pytest.fixture
def model() -> Iterator[Model]:
    pool = pool_of()
    yield pool.model("a")
    pool.close()


def test_each_kind_has_its_own_array_interface(model: Model) -> None:
    region = model.region("runtime", 1000)
    assert region.__array_interface__ == {
        "shape": (1000,),
        "typestr": "|u1",
        "data": (region.address, False),
        "strides": None,
        "version": 3,
    }
    with pytest.raises(AttributeError, match="use __array_interface__ or DLPack"):
        _ = region.__cuda_array_interface__
    assert not hasattr(region, "__cuda_array_interface__")


def test_the_capsule_is_of_the_version_that_was_asked_for(model: Model) -> None:
    region = model.region("runtime", 1000)
    assert region.__dlpack_device__() == CPU
    for max_version in (None, (0, 8)):
        assert name_of(region.__dlpack__(max_version=max_version)) == "dltensor"
    for max_version in ((1, 0), (1, 3), (2, 0)):
        capsule = region.__dlpack__(max_version=max_version)
        assert name_of(capsule) == "dltensor_versioned"
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype = ctypes.c_void_p
        pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        tensor = VersionedTensor.from_address(pointer(capsule, b"dltensor_versioned"))
        assert (tensor.major, tensor.minor, tensor.flags) == (1, 0, 0)
        assert (tensor.device_type, tensor.device_id) == CPU
        assert (tensor.data, tensor.byte_offset) == (region.address, 0)
        assert (tensor.ndim, tensor.shape[0], tensor.strides[0]) == (1, 1000, 1)
        assert (tensor.code, tensor.bits, tensor.lanes) == (1, 8, 1)


def test_dlpack_never_copies(model: Model) -> None:
    region = model.region("runtime", 1000)
    region.__dlpack__(copy=False, dl_device=CPU, stream=None)
    with pytest.raises(BufferError, match="never copied"):
        region.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="never copied"):
        region.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="no stream"):
        region.__dlpack__(stream=1)


def test_capsules_that_nobody_takes_let_the_addresses_go() -> None:
    pool = pool_of()
    region = pool.model("a").region("runtime", PAGE_BYTES)
    capsules = [region.__dlpack__(max_version=version) for version in (None, (1, 0))]
    reserved, address = f"{region.address:x}-", region.address
    pool.close()
    del pool, region
    gc.collect()
    assert is_reserved(address), reserved
    del capsules
    gc.collect()
    assert not is_reserved(address), reserved


def is_reserved(address: int) -> bool:
    """Whether the address is in any mapping of this process."""
    with Path("/proc/self/maps").open() as maps:
        ranges = [line.split()[0].split("-") for line in maps]
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


def test_a_round_trip_with_torch_and_numpy(model: Model) -> None:
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    region = model.region("runtime", PAGE_BYTES)
    tensor = torch.from_dlpack(region)
    array = numpy.from_dlpack(region)
    again = torch.from_dlpack(array)
    seen = numpy.asarray(region)
    assert tensor.data_ptr() == again.data_ptr() == region.address
    assert array.ctypes.data == seen.ctypes.data == region.address
    # Apart from the arrays, which nothing may look into while the model is out: not even pytest.
    looks = [(str(a.dtype), a.shape, a.strides, a.flags.writeable) for a in (seen, array)]
    assert looks == [("uint8", (PAGE_BYTES,), (1,), True)] * 2
    looks = [(str(t.dtype), tuple(t.shape), t.stride()) for t in (tensor, again)]
    assert looks == [("torch.uint8", (PAGE_BYTES,), (1,))] * 2
    with model.resident():
        tensor.copy_(torch.arange(PAGE_BYTES) % 251)
        assert bytes(memory_of(region)[:252]) == bytes([*range(251), 0])
        assert (seen == numpy.arange(PAGE_BYTES) % 251).all()
        seen[5] = 99
        assert again[5] == array[5] == 99
    model.swap_out()
    with model.resident():
        assert int(tensor[5]) == 99
        assert int(seen[250]) == 250


def test_an_array_keeps_the_addresses() -> None:
    numpy = pytest.importorskip("numpy")
    pool = pool_of()
    region = pool.model("a").region("runtime", PAGE_BYTES)
    address = region.address
    array = numpy.asarray(region)
    view = array[100:200]
    gone = weakref.ref(pool)
    pool.close()
    del pool, region, array
    gc.collect()
    assert gone() is None
    assert is_reserved(address)
    del view
    gc.collect()
    assert not is_reserved(address)
