"""What is fetched ahead waits while somebody waits for another model that is coming in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from pool_bench import PAGE_BYTES, pool_of
from warm_bench import come, loaded

from gpupool import Model, Pool
from gpupool.residency import ahead
from gpupool.session import Session

LARGE = 40  # pages, of more than two batches


class Held:
    """A keeper whose model is on its way in for as long as the test says."""

    def __init__(self) -> None:
        self.coming, self.may_come = threading.Event(), threading.Event()

    def arrived(self) -> None:
        self.coming.set()
        assert self.may_come.wait(60)

    def _nothing(self) -> None:
        pass

    leaving = save = left = settle = forsake = close = _nothing


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = pool_of(2 * LARGE)
    yield made
    made.close()


@contextmanager
def on_its_way(model: Model) -> Iterator[Held]:
    """Somebody waits for it in this block, and has it in the end."""
    held = Held()
    model.add_keeper(held)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(come, model)
        try:
            assert held.coming.wait(60)
            yield held
        finally:
            held.may_come.set()
        coming.result(60)


@contextmanager
def fetching(model: Model) -> Iterator[None]:
    """It is being fetched in this block, and has looked whether it is in the way."""
    session: Session = model._session
    looks = threading.Semaphore(0)
    others_arrive = session.others_arrive

    def looked() -> bool:
        looks.release()
        return others_arrive()

    session.others_arrive = looked  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(model.prefetch)
        for _ in range(3):
            assert looks.acquire(timeout=60)
        yield
        assert done.result(60)


def test_it_waits_and_then_goes_on(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_GIVES_WAY_S", 600.0)
    awaited, fetched = loaded(pool, "a", 2), loaded(pool, "b", LARGE)
    with on_its_way(awaited) as way, fetching(fetched):
        assert fetched.warm_bytes == 0
        way.may_come.set()
    assert fetched.last_swap_in is not None
    assert fetched.last_swap_in.copied_bytes == LARGE * PAGE_BYTES


def test_it_hurries_once_somebody_waits_for_it_too(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_GIVES_WAY_S", 600.0)
    awaited, fetched = loaded(pool, "a", 2), loaded(pool, "b", LARGE)
    with on_its_way(awaited), fetching(fetched):
        assert fetched.warm_bytes == 0
        come(fetched)
    assert fetched.swap_ins == 1


def test_it_does_not_wait_for_what_takes_long(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_GIVES_WAY_S", 0.0)
    awaited, fetched = loaded(pool, "a", 2), loaded(pool, "b", LARGE)
    with on_its_way(awaited):
        assert fetched.prefetch()


def test_who_could_not_come_is_in_nobodys_way(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_GIVES_WAY_S", 600.0)
    fails, fetched = loaded(pool, "a", 2), loaded(pool, "b", LARGE)
    held = Held()
    held.may_come.set()
    fails.add_keeper(held)
    monkeypatch.setattr(held.may_come, "wait", lambda _: False)
    with pytest.raises(AssertionError):
        come(fails)
    assert fetched.prefetch()


def test_who_hurried_before_its_lease_is_waited_for(pool: Pool) -> None:
    model = loaded(pool, "a", 2)
    session = model._session
    model.declare()
    session.hurry()  # as its parked images were being read back
    grant = session.acquire(10.0, None, lambda: True)
    assert session.others_arrive()
    session.release([page.handle for page in grant.pages[1:]], leaving=True)
    session.give_back(None)
    assert not session.others_arrive()
