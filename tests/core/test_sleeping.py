"""Models that are asleep: out, and in for nobody."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from gate_bench import wait_until
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pool_bench import pool_of
from warm_bench import come, loaded

from gpupool._core import FaultPlan
from gpupool.errors import DriverError, SwapCancelledError, UsageError

PAGES = 3
INDEX = st.integers(0, 2)


class Sleeping(RuleBasedStateMachine):
    """Three models in a pool that holds one and some warm pages of another."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = FaultPlan()
        self.pool = pool_of(PAGES + 1, self.plan)
        self.models = [loaded(self.pool, name, PAGES) for name in "abc"]
        self.asleep: set[int] = set()

    @rule(index=INDEX)
    def sleep(self, index: int) -> None:
        self.models[index].sleep()
        self.asleep.add(index)

    @rule(index=INDEX, nth=st.integers(1, 8))
    def fail_to_sleep(self, index: int, nth: int) -> None:
        self.plan.arm(nth, 999, releases=True)
        try:
            self.models[index].sleep()
            self.asleep.add(index)
        except DriverError:
            pass  # awake if it was
        finally:
            self.plan.disarm()

    @rule(index=INDEX)
    def wake(self, index: int) -> None:
        self.models[index].wake()
        self.asleep.discard(index)

    @rule(index=INDEX)
    def run(self, index: int) -> None:
        with self._refused(index):
            come(self.models[index])

    @rule(index=INDEX)
    def fetch_ahead(self, index: int) -> None:
        with self._refused(index):
            self.models[index].prefetch(timeout_s=0.01)

    @rule(index=INDEX)
    def swap_out(self, index: int) -> None:
        self.models[index].swap_out()

    @invariant()
    def sleepers_have_no_memory(self) -> None:
        for index, model in enumerate(self.models):
            if index in self.asleep:
                assert not model.gate.is_resident
                assert model.warm_bytes == 0
                with pytest.raises(UsageError, match=f"'{model.name}' is asleep"):
                    model.check_awake()
            else:
                model.check_awake()

    def _refused(self, index: int) -> contextlib.AbstractContextManager[object]:
        if index in self.asleep:
            return pytest.raises(UsageError, match="is asleep: wake it up first")
        return contextlib.nullcontext()

    def teardown(self) -> None:
        self.pool.close()


Sleeping.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSleeping = Sleeping.TestCase


def test_what_is_fetched_ahead_is_given_up() -> None:
    pool = pool_of(40)
    a = loaded(pool, "a", 40)
    with ThreadPoolExecutor(1) as thread:
        fetching = thread.submit(a.prefetch, 1e-9)
        wait_until(lambda: a.warm_bytes > 0)
        a.sleep()
        assert a.warm_bytes == 0
        assert isinstance(fetching.exception(), SwapCancelledError | UsageError)
    a.wake()
    come(a)
    pool.close()


def test_sleep_inside_a_step_changes_nothing() -> None:
    pool = pool_of()
    a = loaded(pool, "a", 2)
    with a.resident():
        with pytest.raises(UsageError, match="in whose step it is"):
            a.sleep()
        assert a.gate.is_resident
    come(a)
    pool.close()
