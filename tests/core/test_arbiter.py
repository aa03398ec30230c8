"""The arbiter, one situation at a time."""

from __future__ import annotations

import pytest
from arbiter_bench import BUDGET_PAGES, PAGE_BYTES, TURN_S, arbiter_of, joined

from gpupool._core import FaultPlan, PagePool, open_host_driver, with_faults
from gpupool.arbiter import Arbiter
from gpupool.errors import DoesNotFitError, DriverError, UsageError
from gpupool.schedule.turns import Residency


def test_a_footprint_over_the_budget_is_refused_naming_both() -> None:
    arbiter = arbiter_of()
    key = arbiter.add("big", 0.0)
    with pytest.raises(DoesNotFitError) as caught:
        arbiter.declare(key, BUDGET_PAGES + 1, "weights 7, KV cache 8")
    needed, budget = (BUDGET_PAGES + 1) * PAGE_BYTES, BUDGET_PAGES * PAGE_BYTES
    assert (caught.value.needed_bytes, caught.value.budget_bytes) == (needed, budget)
    for part in ("big", str(needed), str(budget), "weights 7, KV cache 8"):
        assert part in str(caught.value)
    arbiter.declare(key, BUDGET_PAGES)  # the largest that can be
    with pytest.raises(UsageError):
        arbiter.declare(key, 0)
    assert arbiter.lease(key).pages == BUDGET_PAGES


def test_names_are_taken_once_and_free_again_after() -> None:
    arbiter = arbiter_of()
    key = arbiter.add("a", 0.0)
    with pytest.raises(UsageError, match="'a'"):
        arbiter.add("a", 1.0)
    assert arbiter.remove(key) == 0
    assert arbiter.add("a", 2.0) != key


def test_requests_out_of_turn_are_refused() -> None:
    arbiter = arbiter_of()
    key = arbiter.add("a", 0.0)
    with pytest.raises(UsageError):
        arbiter.request(key, 0.0)  # no footprint
    arbiter.declare(key, 1)
    arbiter.request(key, 0.0)
    for out_of_turn in (
        lambda: arbiter.request(key, 0.0),
        lambda: arbiter.declare(key, 2),
        lambda: arbiter.yielded(key, 0.0),
    ):
        with pytest.raises(UsageError):
            out_of_turn()
    assert arbiter.decide(0.0).granted[0].pages != []
    assert arbiter.cancel(key, 0.0) is False  # too late: granted
    with pytest.raises(UsageError):
        arbiter.declare(key, 2)


def test_a_device_out_of_memory_fails_one_request_and_no_other() -> None:
    plan = FaultPlan()
    driver = with_faults(open_host_driver(), plan)
    arbiter = Arbiter(PagePool(driver, 4 * PAGE_BYTES, PAGE_BYTES), TURN_S)
    unlucky, lucky = joined(arbiter, "unlucky", 3), joined(arbiter, "lucky", 1)
    arbiter.request(unlucky, 0.0)
    arbiter.request(lucky, 1.0)
    plan.arm(2, 2)  # the second page
    outcome = arbiter.decide(2.0)
    assert [key for key, _ in outcome.failed] == [unlucky]
    assert isinstance(outcome.failed[0][1], DriverError)
    assert [granted.key for granted in outcome.granted] == [lucky]
    assert arbiter.lease(unlucky).state is Residency.OUT
    arbiter.request(unlucky, 3.0)
    assert [granted.key for granted in arbiter.decide(3.0).granted] == [unlucky]


def test_a_lost_process_keeps_its_pages_until_it_is_gone() -> None:
    arbiter = arbiter_of()
    lost, other = joined(arbiter, "lost", 4), joined(arbiter, "other", 2)
    arbiter.request(lost, 0.0)
    arbiter.decide(0.0)
    arbiter.request(other, 1.0)
    arbiter.fence(lost, 1.0)
    assert arbiter.fenced_pages == 4
    outcome = arbiter.decide(100.0)
    assert not outcome.granted and not outcome.revoked  # they will come back: nobody else must go
    arbiter.keep(lost, 100.0)
    assert arbiter.lease(lost).state is Residency.LEAVING
    assert arbiter.remove(lost) == 4
    assert [granted.key for granted in arbiter.decide(101.0).granted] == [other]
    assert arbiter.fenced_pages == 0
