"""Tensors that share bytes without sharing a storage: they share them as before after a move."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

from pool_bench import pool_of  # noqa: E402

from gpupool.adopt import Adopted, adopt  # noqa: E402

BASE_BYTES = 256
DTYPES = ["u1", "i2", "f4", "f8", "c8", "c16"]


class View(NamedTuple):
    """Of an array of bytes: where it begins, and one in ``step`` of so many elements."""

    dtype: str
    start: int
    count: int
    step: int
    home: str

    def of(self, base: np.ndarray) -> np.ndarray:
        itemsize = np.dtype(self.dtype).itemsize
        whole = base[self.start : self.start + self.count * itemsize]
        return whole[: len(whole) // itemsize * itemsize].view(self.dtype)[:: self.step]


VIEWS = st.builds(
    View,
    st.sampled_from(DTYPES),
    st.integers(0, BASE_BYTES - 16),
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from(["parameter", "attribute", "list", "tuple"]),
)


def put(module: torch.nn.Module, number: int, view: View, array: np.ndarray) -> None:
    tensor = torch.from_numpy(array)
    if view.home == "parameter" and tensor.dtype.is_floating_point:
        tensor = torch.nn.Parameter(tensor, requires_grad=False)
    if view.home in ("list", "tuple"):
        module.listed.append(tensor if view.home == "list" else ("a", [tensor]))
    else:
        module.listed.append(None)
        setattr(module, f"t{number}", tensor)


def at(module: torch.nn.Module, number: int) -> torch.Tensor:
    found = module.listed[number]
    if isinstance(found, tuple):
        return found[1][0]
    return getattr(module, f"t{number}") if found is None else found


@settings(deadline=None)
@given(st.lists(VIEWS, min_size=1, max_size=6), st.integers(0, 1 << 32))
def test_overlapping_arrays_share_after_as_they_did_before(views: list[View], seed: int) -> None:
    rng = random.Random(seed)
    base = np.frombuffer(bytearray(rng.randbytes(BASE_BYTES)), np.uint8)
    moved, expected = base.copy(), [view.of(base) for view in views]
    module, pool = torch.nn.Module(), pool_of()
    model = pool.model("a")
    module.listed = []
    for number, view in enumerate(views):
        put(module, number, view, view.of(moved))
    module.listed.append(module.listed)  # a list may be in itself
    assert adopt(module, model).outside_bytes == 0
    for _ in range(2):
        with model.resident(writes=True):
            arrays = [at(module, number).numpy() for number in range(len(views))]
            for _ in range(4):
                into, value = rng.randrange(len(views)), rng.randrange(256)
                where = rng.randrange(len(arrays[into]))
                arrays[into][where] = expected[into][where] = value
                assert [a.tobytes() for a in arrays] == [a.tobytes() for a in expected]
        model.swap_out()
    pool.close()


def test_storages_side_by_side_are_packed_apart() -> None:
    module, model, base = torch.nn.Module(), pool_of().model("a"), np.arange(16.0)
    module.low, module.high = torch.from_numpy(base[:8]), torch.from_numpy(base[8:])
    assert adopt(module, model) == Adopted(0, 512, 0)


def test_what_overlaps_something_unknown_stays_outside_with_it() -> None:
    module, model, base = torch.nn.Module(), pool_of().model("a"), np.arange(16.0)
    module.whole, kept = torch.from_numpy(base), torch.from_numpy(base[8:])
    module.tail = kept.data
    assert adopt(module, model) == Adopted(0, 0, base.nbytes)
    kept[0] = 99.0
    assert module.whole[8] == module.tail[0] == 99.0
