"""The embedded pool: what it refuses, what threads may do to it, and every fault."""

from __future__ import annotations

import doctest
import threading

import pytest
from pool_bench import BUDGET_PAGES, PAGE_BYTES, memory_of, pool_of, resident_model

import gpupool.pool
from gpupool import Model, Pool
from gpupool._core import FaultPlan, PagePool
from gpupool.errors import DoesNotFitError, DriverError, LeaseTimeoutError, UsageError
from gpupool.regions import Regions


def test_the_doctests_of_the_pool() -> None:
    results = doctest.testmod(gpupool.pool, raise_on_error=True)
    assert results.attempted >= 40
    # Every method that is part of the library is in an example, and so is all that a model has.
    examples = doctest.script_from_examples(gpupool.pool.__doc__ or "")
    assert doctest.testmod(gpupool.model, raise_on_error=True).attempted >= 7
    for module in (gpupool.pool, gpupool.model):
        for found in doctest.DocTestFinder().find(module):
            examples += "".join(example.source for example in found.examples)
    elsewhere = {"session", "torch_allocator", "cupy_allocator"}  # of a GPU, or for other arbiters
    for_keepers = {
        "add_keeper",
        "blocks_moved",
        "damaged",
        "driver",
        "host_memory",
        "return_host_memory",
    }
    for_others = for_keepers | {"declare"}
    for kind in (Pool, Model, Regions):
        public = {name for name in vars(kind) if not name.startswith("_")}
        for name in public - elsewhere - for_others:
            assert f".{name}" in examples, name


def test_an_unknown_device_is_refused() -> None:
    for device in ("", "gpu", "cuda:x", "cuda:-1", "host:0", "CUDA"):
        with pytest.raises(UsageError, match="unknown device"):
            Pool(device=device, budget_bytes=PAGE_BYTES, page_bytes=PAGE_BYTES)


@pytest.mark.parametrize(
    ("budget_bytes", "page_bytes"),
    [(PAGE_BYTES - 1, PAGE_BYTES), (8 * PAGE_BYTES, 3 * PAGE_BYTES), (8 * PAGE_BYTES, 4096)],
)
def test_impossible_sizes_are_refused(budget_bytes: int, page_bytes: int) -> None:
    with pytest.raises(UsageError):
        Pool(device="host", budget_bytes=budget_bytes, page_bytes=page_bytes)


def test_an_unknown_tag_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(UsageError, match="weights, runtime, cudagraph, kv_cache, workspace"):
        pool_of().model("a").region("wights", 1)


def test_names_are_unique_among_open_models() -> None:
    pool = pool_of()
    first = pool.model("a")
    with pytest.raises(UsageError, match="'a'"):
        pool.model("a")
    first.close()
    pool.model("a")


def test_a_model_larger_than_the_budget_is_refused_naming_both_sizes() -> None:
    pool = pool_of()
    model = resident_model(pool, "big", BUDGET_PAGES + 1)
    with pytest.raises(DoesNotFitError) as caught, model.resident():
        pass
    assert caught.value.needed_bytes == (BUDGET_PAGES + 1) * PAGE_BYTES
    assert caught.value.budget_bytes == BUDGET_PAGES * PAGE_BYTES
    assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES


def test_a_model_in_use_by_this_thread_is_not_evicted_for_another() -> None:
    pool = pool_of()
    a, b = resident_model(pool, "a"), resident_model(pool, "b")
    with a.resident():
        with pytest.raises(UsageError, match="in whose step it is"), b.resident():
            pass
        assert a.gate.is_resident
    with b.resident():
        assert not a.gate.is_resident


def test_a_wait_for_a_model_in_use_keeps_its_deadline() -> None:
    pool = pool_of()
    a, b = resident_model(pool, "a"), resident_model(pool, "b")
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            with b.resident(timeout_s=0.05):
                pass
        except LeaseTimeoutError as error:
            raised.append(error)

    with a.resident():
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(20.0)
        assert not thread.is_alive()
        assert raised
        assert a.gate.is_resident
    with b.resident():
        assert b.gate.is_resident


def test_threads_take_turns() -> None:
    pool = pool_of()
    names = ["a", "b", "c"]
    wrong: list[str] = []

    def work(model: Model) -> None:
        stamp = model.name.encode() * 8
        region = model.regions("weights")[0]
        for turn in range(20):
            with model.resident():
                view = memory_of(region)
                if turn > 0 and bytes(view[:8]) != stamp:
                    wrong.append(model.name)
                view[:8] = stamp
                region.mark_written([(0, 8)])

    threads = [
        threading.Thread(target=work, args=(resident_model(pool, name, 3),), daemon=True)
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive()
    assert wrong == []
    pool.close()
    assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES


def test_closing_inside_a_step_is_refused_and_may_be_done_later() -> None:
    pool = pool_of()
    model = resident_model(pool, "a")
    with model.resident(), pytest.raises(UsageError):
        model.close()
    model.close()
    assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
    with pytest.raises(UsageError, match="closed"), model.resident():
        pass


@pytest.mark.parametrize("persistent", [False, True])
def test_every_fault_leaves_a_pool_that_works(persistent: bool) -> None:
    nth, injected = 0, 1
    while injected:
        nth += 1
        plan = FaultPlan()
        pool = pool_of(plan=plan)
        a, b = resident_model(pool, "a", 3), resident_model(pool, "b", 3)
        region = a.regions("weights")[0]
        with a.resident():
            memory_of(region)[:6] = b"secret"
            region.mark_written([(0, 6)])
        plan.arm(nth, 999, persistent=persistent)
        try:
            with b.resident():
                pass
        except DriverError:
            assert plan.injected
        injected = plan.injected
        plan.disarm()
        with b.resident():
            assert bytes(memory_of(b.regions("weights")[0])[:6]) == bytes(6)
        with a.resident():
            assert bytes(memory_of(region)[:6]) == b"secret"
        pool.close()
        assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
    assert nth > 10


def test_the_model_used_least_recently_makes_room() -> None:
    pool = pool_of()
    half = BUDGET_PAGES // 2
    first, second, third = (resident_model(pool, name, half) for name in "abc")
    for model in (first, second):
        with model.resident():
            pass
    with first.resident():  # granted earlier, used later
        pass
    with third.resident():
        assert first.gate.is_resident
        assert not second.gate.is_resident
    pool.close()


def test_an_interrupted_wait_leaves_no_request_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of()
    a, b = (resident_model(pool, name, BUDGET_PAGES) for name in "ab")
    with a.resident(), monkeypatch.context() as patch:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(type(a.gate), "give_up", interrupt)
        with pytest.raises(KeyboardInterrupt), b.resident():
            pass
    for model in (b, a, b):
        with model.resident():
            pass
    pool.close()
    assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES


def test_pages_that_come_as_their_model_is_interrupted_are_free_again() -> None:
    pool = pool_of()
    model = resident_model(pool, "a")
    other = resident_model(pool, "b")
    arbiter = model._session._arbiter._arbiter  # type: ignore[attr-defined]

    class Interrupted:
        def __init__(self, pages: PagePool) -> None:
            self._pages = pages

        def __getattr__(self, name: str) -> object:
            return getattr(self._pages, name)

        def acquire(self, key: int, count: int) -> None:
            arbiter._pages = self._pages
            self._pages.acquire(key, count)
            raise KeyboardInterrupt

    arbiter._pages = Interrupted(arbiter._pages)
    with pytest.raises(KeyboardInterrupt), model.resident():
        pass
    assert pool.free_bytes == BUDGET_PAGES * PAGE_BYTES
    for each in (model, other):
        with each.resident(timeout_s=5.0):
            pass
    pool.close()


def test_a_revoke_of_a_lease_that_has_ended_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The victim leaves by itself, and asks to come back, before the revoke reaches it."""
    pool = pool_of()
    a, b = (resident_model(pool, name, BUDGET_PAGES) for name in "ab")
    with a.resident():
        pass
    asked_again = threading.Event()
    give_up = type(a.gate).give_up

    def late(self: object, *arguments: object) -> object:
        if self is a.gate and arguments and not asked_again.is_set():
            assert give_up(a.gate)  # of its own accord
            asking = threading.Thread(target=lambda: a.gate.open_step() or a.gate.close_step())
            asking.start()
            while a.gate._state.value != "arriving":
                pass
            asked_again.set()
        return give_up(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(a.gate), "give_up", late)
    with b.resident(timeout_s=20.0):
        assert not a.gate.is_resident
    with a.resident(timeout_s=20.0):
        pass
    pool.close()


def test_writes_survive_where_they_are_announced() -> None:
    torch = pytest.importorskip("torch")
    pool = pool_of()
    model = pool.model("a")
    tensors = [torch.from_dlpack(model.region(tag, PAGE_BYTES)) for tag in ("weights", "kv_cache")]
    for value in (7, 9):
        with model.resident(writes=True):
            for tensor in tensors:
                tensor.fill_(value)
        model.swap_out()
    with model.resident():
        assert all(int(tensor.min()) == int(tensor.max()) == 9 for tensor in tensors)
    pool.close()
