"""What is fetched ahead on some pages of others comes in batches, gives way, hurries and stops."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpupool
from gpupool._core import FaultPlan, Region, open_host_driver, with_faults
from gpupool.errors import DriverError, SwapCancelledError
from gpupool.residency import ahead
from tests.core.gate_bench import wait_until
from tests.sharing.test_fine_tunes import flip

PAGE_BYTES = 2 << 20
WHOLE = 9  # pages of the weights; what is behind them is never shared
WEIGHTS_BYTES = WHOLE * PAGE_BYTES + 5000
BATCH = 2  # pages
BUDGET_PAGES = 2 * (WHOLE + 2)
NEVER = 1e-300  # a share of the link at which the second batch would never come

SAME = st.one_of(
    st.sampled_from([(), (0,), (WHOLE // 2,), (WHOLE - 1,), tuple(range(WHOLE))]),
    st.sets(st.integers(0, WHOLE - 1)).map(lambda pages: tuple(sorted(pages))),
)
KEPT = st.integers(0, 4)
NTH = st.integers(0, WHOLE // BATCH)


class Pair:
    """A model that is resident, and one that has these pages together with it and is out."""

    def __init__(self, same: tuple[int, ...], kept: int = 0, verify: str = "always") -> None:
        self.plan = FaultPlan()
        self.pool = gpupool.Pool(
            device="host",
            budget_bytes=BUDGET_PAGES * PAGE_BYTES,
            page_bytes=PAGE_BYTES,
            driver=with_faults(open_host_driver(), self.plan),
        )
        self.same, self.kept = same, kept
        self.other, self.others = self._make("other", "always")
        self.model, self.weights = self._make("model", verify)
        self.model.region("workspace", PAGE_BYTES)
        self.looks: list[int] = []
        """Pages that were there as each batch was about to come."""
        self._does: dict[int, Callable[[], bool | None]] = {}
        self.model._session.others_arrive = self._look  # type: ignore[method-assign]
        with self.other.resident():
            pass
        if kept > 0:
            with self.model.resident():
                pass
            self.model.gate.give_up(keep=kept)

    def _make(self, name: str, verify: str) -> tuple[gpupool.Model, Region]:
        model = self.pool.model(name, shares=True, verify=verify)
        region = model.region("weights", WEIGHTS_BYTES)
        with memoryview(region.image()) as image:  # type: ignore[arg-type]
            image[:] = self.content(name)
        region.adopt_image()
        model.share()
        return model, region

    def content(self, name: str) -> bytes:
        whose = ["other" if i in self.same else name for i in range(WHOLE)]
        words = [b"%.4s%04d" % (of.encode(), i) for i, of in enumerate(whose)]
        return b"".join(word * (PAGE_BYTES // 8) for word in words) + name.encode() * 1000

    def _look(self) -> bool:
        nth = len(self.looks)
        self.looks.append(self.model.warm_bytes // PAGE_BYTES)
        return bool(self._does.get(nth, lambda: False)())

    def at_batch(self, nth: int, do: Callable[[], bool | None]) -> None:
        """Before it comes, by the thread that fetches; true says that somebody else arrives."""
        self._does[nth] = do

    def check(self, *models: gpupool.Model) -> None:
        """They have what is theirs."""
        for model in models:
            region = self.others if model is self.other else self.weights
            with model.resident():
                assert ctypes.string_at(region.address, WEIGHTS_BYTES) == self.content(model.name)

    def held(self, model: gpupool.Model) -> int:
        """Pages that are the model's by the ledger."""
        return len(self.pool._pages.owned(model._session.key))  # type: ignore[attr-defined]

    def end(self, *, out: bool) -> None:
        """The model is as it should be, and the other was not touched; both go."""
        if out:
            assert not self.model.gate.is_resident
            assert self.weights.page_handles == [] and self.held(self.model) == 0
            assert self.pool.free_bytes == (BUDGET_PAGES - WHOLE - 1) * PAGE_BYTES
        self.check(self.other, self.model)
        assert self.other.swap_ins == 1
        theirs, its = self.others.page_handles, self.weights.page_handles
        assert [i for i in range(WHOLE) if theirs[i] == its[i]] == list(self.same)
        assert self.held(self.model) == WHOLE + 2
        held = 2 * WHOLE + 3 - len(self.same)
        assert self.pool.free_bytes == (BUDGET_PAGES - held) * PAGE_BYTES
        self.other.swap_out()
        self.check(self.model)
        self.model.swap_out()
        assert self.pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
        self.pool.close()


def small_batches() -> object:
    return mock.patch.object(ahead, "_BATCH_BYTES", BATCH * PAGE_BYTES)


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """What begins the work on a thread of its own, which is over by the end of the block."""
    with ThreadPoolExecutor(1) as threads:
        futures = []
        yield lambda: futures.append(threads.submit(work))
        for future in futures:
            future.result(60)


@settings(max_examples=20)
@given(same=SAME, kept=KEPT, nth=NTH, verify=st.sampled_from(["always", "sample", "off"]))
def test_it_comes_in_batches_and_gives_way_before_each(
    same: tuple[int, ...], kept: int, nth: int, verify: str
) -> None:
    pair = Pair(same, kept, verify)
    waits = iter([True, True])
    pair.at_batch(nth, lambda: next(waits))
    pair.at_batch(nth + 1, lambda: next(waits))
    with small_batches(), mock.patch.object(ahead, "_GIVES_WAY_S", 600.0):
        assert pair.model.prefetch()
    seen = list(range(kept, WHOLE + 1, BATCH))
    if nth < len(seen):  # nothing came as long as somebody else did
        seen[nth:nth] = [seen[nth]] * 2
    assert pair.looks == seen
    report = pair.model.last_swap_in
    assert report is not None
    assert report.shared_bytes == len([i for i in same if i >= kept]) * PAGE_BYTES
    assert report.copied_bytes == WEIGHTS_BYTES - kept * PAGE_BYTES - report.shared_bytes
    assert report.ahead_bytes == report.copied_bytes
    if verify == "always":
        assert report.verified_bytes >= WEIGHTS_BYTES
    pair.end(out=False)


@settings(max_examples=15)
@given(same=SAME, kept=KEPT, nth=NTH)
def test_it_ends_between_batches_and_leaves_nothing_half(
    same: tuple[int, ...], kept: int, nth: int
) -> None:
    pair = Pair(same, kept)
    batches = len(range(kept, WHOLE + 1, BATCH))
    with small_batches(), beside(pair.model.swap_out) as begin:

        def leave() -> None:
            begin()
            wait_until(lambda: not pair.model.gate._ahead.is_wanted())  # type: ignore[union-attr]

        pair.at_batch(nth, leave)
        if nth < batches:
            with pytest.raises(SwapCancelledError):
                pair.model.prefetch()
            assert len(pair.looks) == nth + 1
        else:
            assert pair.model.prefetch()
    pair.end(out=nth < batches)


@settings(max_examples=15)
@given(same=SAME, kept=KEPT, nth=NTH)
def test_a_step_hurries_it(same: tuple[int, ...], kept: int, nth: int) -> None:
    pair = Pair(same, kept)
    with small_batches(), beside(lambda: pair.check(pair.model)) as begin:

        def use() -> None:
            begin()
            wait_until(lambda: pair.model.gate._ahead.hurries)  # type: ignore[union-attr]

        pair.at_batch(nth, use)
        assert pair.model.prefetch(1.0 if nth > 0 else NEVER)
    report = pair.model.last_swap_in
    assert report is not None
    if nth == 0:
        assert report.ahead_bytes < max(report.copied_bytes, 1)
    pair.end(out=False)


@settings(max_examples=25)
@given(same=SAME, kept=KEPT, nth=NTH, call=st.integers(1, 12))
def test_a_fault_on_the_way_leaves_it_out(
    same: tuple[int, ...], kept: int, nth: int, call: int
) -> None:
    pair = Pair(same, kept)
    pair.at_batch(nth, lambda: pair.plan.arm(call, 999))
    with small_batches():
        try:
            pair.model.prefetch()
            failed = False
        except DriverError:
            failed = True
    assert failed == (pair.plan.injected > 0)
    pair.plan.disarm()
    pair.end(out=failed)


@pytest.mark.parametrize("same", [(0,), (WHOLE // 2,), (WHOLE - 1,), tuple(range(WHOLE))])
def test_a_share_of_the_link_is_kept(same: tuple[int, ...]) -> None:
    pair = Pair(same)
    with small_batches(), ThreadPoolExecutor(1) as threads:
        fetching = threads.submit(pair.model.prefetch, NEVER)
        wait_until(lambda: pair.model.warm_bytes > 0)
        assert not pair.model.swap_out()  # it was not there yet
        with pytest.raises(SwapCancelledError):
            fetching.result(60)
    assert len(pair.looks) == 2
    pair.end(out=True)


@pytest.mark.parametrize("wrong", [0, 5, WHOLE - 1])
def test_a_page_that_is_wrong_is_had_anew(wrong: int) -> None:
    pair = Pair(tuple(range(WHOLE)))
    bad = pair.others.page_handles[wrong]
    flip(pair.pool, bad, 11)
    with small_batches():
        assert pair.model.prefetch()
    assert bad not in pair.weights.page_handles
    pair.check(pair.model, pair.other)
    assert pair.other.swap_ins == 2  # it computes no more on what was found wrong
    assert [model.damaged for model in pair.pool.statistics().models] == [1, 1]
    pair.pool.close()
