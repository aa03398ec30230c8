"""Pages of what need not be saved go before the rest is, and nothing is lost where that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
from pool_bench import PAGE_BYTES, memory_of, pool_of

from gpupool import Pool
from gpupool._core import FaultPlan
from gpupool.errors import DriverError
from gpupool.model import Model


def made(pool: Pool, name: str) -> Model:
    """Of two pages of weights, and two regions of a page each that every step writes to."""
    model = pool.model(name)
    weights = model.region("weights", 2 * PAGE_BYTES)
    with memoryview(weights.image()) as image:  # type: ignore[arg-type]
        image.cast("B")[:3] = name.encode() * 3
    weights.adopt_image()
    for tag in ("runtime", "cudagraph"):
        model.region(tag, PAGE_BYTES)
    return model


def step(model: Model, value: int) -> None:
    with model.resident():
        for tag in ("runtime", "cudagraph"):
            memory_of(model.regions(tag)[0])[:2] = bytes([value, value + 1])


def check(model: Model, value: int) -> None:
    with model.resident():
        assert bytes(memory_of(model.regions("weights")[0])[:3]) == model.name.encode() * 3
        for tag in ("runtime", "cudagraph"):
            assert bytes(memory_of(model.regions(tag)[0])[:2]) == bytes([value, value + 1])


def saved(model: Model) -> list[int]:
    """What the images have for the first byte that a step writes."""
    values = []
    for tag in ("runtime", "cudagraph"):
        with memoryview(model.regions(tag)[0].image()) as image:  # type: ignore[arg-type]
            values.append(image.cast("B")[0])
    return values


def test_others_have_the_pages_before_the_rest_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(4)
    a, b = made(pool, "a"), made(pool, "b")
    step(a, 1)
    a.swap_out()
    step(a, 5)
    seen: list[tuple[int, list[int]]] = []
    release = a._session.release

    def released(handles: Sequence[int], *, leaving: bool = False) -> None:
        release(handles, leaving=leaving)
        seen.append((pool.free_bytes // PAGE_BYTES, saved(a)))

    monkeypatch.setattr(a._session, "release", released)
    step(b, 3)
    assert seen == [(2, [1, 1]), (3, [5, 1])]
    assert saved(a) == [5, 5]
    assert a.last_swap_out is not None
    assert (a.last_swap_out.pages, a.last_swap_out.copied_bytes) == (4, 2 * PAGE_BYTES)
    check(a, 5)
    check(b, 3)
    pool.close()
    assert pool.free_bytes == 4 * PAGE_BYTES


@pytest.mark.parametrize("persistent", [False, True])
def test_a_model_that_fails_to_leave_loses_nothing(persistent: bool) -> None:
    torn = 0
    for nth in range(1, 40):
        plan = FaultPlan()
        pool = pool_of(4, plan)
        a, b = made(pool, "a"), made(pool, "b")
        step(b, 3)
        step(a, 5)
        plan.arm(nth, 999, persistent=persistent)
        with contextlib.suppress(DriverError):
            a.swap_out()
        injected = plan.injected
        plan.disarm()
        torn += a._residency.torn
        check(b, 3)
        assert not a._residency.torn
        check(a, 5)
        pool.close()
        assert pool.free_bytes == 4 * PAGE_BYTES
        if not injected:
            break
    else:
        pytest.fail("a swap-out has more calls than that")
    assert torn


def test_a_torn_model_comes_back_with_what_was_not_saved() -> None:
    plan = FaultPlan()
    pool = pool_of(4, plan)
    a = made(pool, "a")
    step(a, 5)
    torn = 0
    for nth in range(1, 30):
        step(a, nth)
        plan.arm(nth, 999, persistent=True)
        with contextlib.suppress(DriverError):
            a.swap_out()
        plan.disarm()
        torn += a._residency.torn
        check(a, nth)
    assert torn
    pool.close()
