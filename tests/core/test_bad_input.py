"""Bad input to the public library: one sentence, and nothing has changed."""

from __future__ import annotations

import gc
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pool_bench import BUDGET_PAGES, PAGE_BYTES, pool_of, resident_model

from gpupool import Model, Pool, copy_with_digest, digest
from gpupool.checks import SECONDS_MAX, seconds, whole
from gpupool.errors import DriverError, UsageError

NO_NUMBERS = [-1, 1.5, 2**63, 2**70, 10**5000, "1", None, [1]]
HOST = {"device": "host", "budget_bytes": PAGE_BYTES, "page_bytes": PAGE_BYTES}


def descriptors() -> int:
    gc.collect()  # of what earlier tests left
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def is_refused(use: Callable[[], object], match: str | None = None) -> None:
    before = descriptors()
    with pytest.raises(UsageError, match=match) as caught:
        use()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert descriptors() <= before  # threads of earlier tests may have ended meanwhile


@pytest.mark.parametrize("number", NO_NUMBERS, ids=range(len(NO_NUMBERS)))
class TestNumbers:
    def test_of_a_pool(self, number: object) -> None:
        for name in ("budget_bytes", "page_bytes"):
            is_refused(lambda name=name: Pool(**(HOST | {name: number})), f"^{name}=")

    def test_of_pages_and_slabs(self, number: object) -> None:
        pool = pool_of()
        if number is not None:  # which stands for all of the budget, and for one page
            is_refused(lambda: pool.create_pages(number), "^count=")
            is_refused(lambda: pool.slabs([4096], slab_bytes=number), "^slab_bytes=")
            is_refused(lambda: pool.slabs([4096], slab_bytes=number, pinned=True), "^slab_bytes=")
        is_refused(lambda: pool.slabs([number]), "^block_bytes=")
        is_refused(lambda: pool.slabs([4096], slabs_max=number), "^slabs_max=")
        assert not pool._arbiter.has_slabs
        assert pool.statistics().pages.created == 0

    def test_of_a_region(self, number: object) -> None:
        model = pool_of().model("a")
        region = model.region("weights", 100)
        is_refused(lambda: model.region("weights", number), "size_bytes=|one byte")
        is_refused(lambda: model.region("weights", 1, capacity_bytes=number), "^capacity_bytes=")
        is_refused(lambda: model.resize(region, number), "size_bytes=|cannot have -1")
        assert model.regions("weights") == [region]
        assert region.bytes == 100

    def test_of_a_digest(self, number: object) -> None:
        if number == 2**63:
            return  # a number of a word as any other
        source, destination = bytes(1 << 20), bytearray(1 << 20)
        is_refused(lambda: digest(source, number), "^first_word")
        is_refused(lambda: copy_with_digest(destination, source, number), "^first_word")
        with pytest.raises(TypeError) as caught:
            digest(number, 0)
        assert len(str(caught.value)) < 300
        with pytest.raises(TypeError) as caught:
            copy_with_digest(destination, number)
        assert len(str(caught.value)) < 300

    def test_of_a_trace(self, number: object, tmp_path: Path) -> None:
        pool = pool_of()
        is_refused(
            lambda: pool.trace(tmp_path / "t", max_events=number).__enter__(), "^max_events="
        )
        assert list(tmp_path.iterdir()) == []
        with pool.trace(tmp_path / "t"):
            pass


def test_a_budget_of_more_pages_than_any_is_refused() -> None:
    is_refused(lambda: Pool(device="host", budget_bytes=2**60, page_bytes=PAGE_BYTES), "larger")


@pytest.mark.parametrize("device", [None, 3, b"host", "cuda:" + "9" * 20, "cuda:\u0663", "cuda:-1"])
def test_a_device_that_cannot_be_is_refused(device: object) -> None:
    is_refused(lambda: Pool(**(HOST | {"device": device})), "unknown device")


def test_no_sizes_of_blocks_are_refused() -> None:
    pool = pool_of()
    is_refused(lambda: pool.slabs([]))
    assert not pool._arbiter.has_slabs
    pool.slabs([4096])
    assert pool._arbiter.has_slabs


@pytest.mark.parametrize("size_bytes", [2**60, 2**62])
def test_a_region_no_machine_has_room_for_leaves_no_descriptor(size_bytes: int) -> None:
    model = pool_of().model("a")
    before = descriptors()
    with pytest.raises(DriverError):
        model.region("weights", size_bytes)
    assert descriptors() == before


@pytest.mark.parametrize("wrong", [math.nan, "1", [1], 1j])
def test_times_that_are_none_are_refused(wrong: object) -> None:
    pool = pool_of()
    model = resident_model(pool, "a", 1)
    is_refused(lambda: model.resident(wrong).__enter__(), "^timeout_s=")
    is_refused(lambda: pool.model("b", lease_timeout_s=wrong), "^lease_timeout_s=")
    assert not model.gate.is_resident
    assert [known.name for known in pool.statistics().models] == ["a"]


@pytest.mark.parametrize("timeout_s", [math.inf, 1e300, threading.TIMEOUT_MAX])
def test_one_may_wait_for_ever(timeout_s: float) -> None:
    assert seconds("x", timeout_s) == SECONDS_MAX
    pool = pool_of()
    a = resident_model(pool, "a")
    b = pool.model("b", lease_timeout_s=timeout_s)
    b.region("weights", PAGE_BYTES)
    waits: list[Model] = []
    asked = threading.Event()
    decide = type(pool._arbiter)._decide

    def seen(arbiter: object) -> float | None:
        asked.set()
        return decide(arbiter)  # type: ignore[arg-type]

    def come_in() -> None:
        with b.resident(timeout_s):
            waits.append(b)

    with pytest.MonkeyPatch.context() as patch, a.resident(timeout_s):
        patch.setattr(type(pool._arbiter), "_decide", seen)
        threads = [threading.Thread(target=come_in) for _ in range(2)]  # one waits for the other
        for thread in threads:
            thread.start()
        assert asked.wait(60.0)
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive()
    assert waits == [b, b]
    pool.close()
    assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES


def test_whole_numbers() -> None:
    assert whole("x", True) == 1
    assert whole("x", 2**62) == 2**62
    for wrong in (2**62 + 1, math.inf):
        is_refused(lambda wrong=wrong: whole("x", wrong), "^x=")


def test_a_sparse_tensor_is_refused_before_anything_moves() -> None:
    torch = pytest.importorskip("torch")
    from gpupool.adopt import adopt

    module = torch.nn.Linear(4, 4)
    module.register_buffer("mask", torch.eye(3).to_sparse())
    model = pool_of().model("a")
    is_refused(lambda: adopt(module, model), "'mask' has the layout torch.sparse_coo")
    assert model.regions("weights") == []
    del module.mask
    assert adopt(module, model).weights_bytes > 0


class TestTraces:
    @pytest.mark.parametrize("how", ["/", "folder"])
    def test_a_folder_is_refused_before_the_block(self, how: str, tmp_path: Path) -> None:
        pool = pool_of()
        path = tmp_path if how == "folder" else Path(how)
        with pytest.raises(IsADirectoryError):
            pool.trace(path).__enter__()
        assert pool.driver.observer is not None
        assert not pool.driver.observer.tracing
        assert list(tmp_path.iterdir()) == []

    def test_a_name_that_no_file_can_have_is_refused_before_the_block(self, tmp_path: Path) -> None:
        pool = pool_of()
        with pytest.raises(OSError):
            pool.trace(tmp_path / ("x" * 255)).__enter__()
        with pool.trace(tmp_path / "t"):
            pass

    def test_a_switch_to_a_folder_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("GPUPOOL_TRACE", str(tmp_path))
        is_refused(pool_of, "is a folder")

    def test_what_the_block_raised_is_what_is_heard(self, tmp_path: Path) -> None:
        pool = pool_of()

        def fail() -> None:
            with pool.trace(tmp_path / "t"):
                (tmp_path / "t").mkdir()  # so that it cannot be written
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine") as caught:
            fail()
        assert any("the trace was not written" in note for note in caught.value.__notes__)
        assert [path.name for path in tmp_path.iterdir()] == ["t"]
        with pool.trace(tmp_path / "u"):
            pass

    def test_of_a_block_that_raises_there_is_a_trace(self, tmp_path: Path) -> None:
        pool = pool_of()
        with pytest.raises(KeyError), pool.trace(tmp_path / "t"):
            raise KeyError
        assert (tmp_path / "t").stat().st_size > 0

    def test_two_pools_trace_to_one_file_at_once(self, tmp_path: Path) -> None:
        with pool_of().trace(tmp_path / "t"), pool_of().trace(tmp_path / "t"):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["t"]

    def test_a_trace_that_cannot_be_written_leaves_nothing(self, tmp_path: Path) -> None:
        pool = pool_of()
        with pytest.raises(OSError), pool.trace(tmp_path / "t"):
            (tmp_path / "t").mkdir()
        assert [path.name for path in tmp_path.iterdir()] == ["t"]
