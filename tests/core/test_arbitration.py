"""The arbiter: a state machine over real page ledgers, driven at random."""

from __future__ import annotations

from dataclasses import replace

import pytest
from arbiter_bench import BUDGET_PAGES, PAGE_BYTES, TURN_S, joined
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpupool._core import FaultPlan, PagePool, open_host_driver, with_faults
from gpupool.arbiter import Arbiter
from gpupool.errors import PoolFullError, UsageError
from gpupool.schedule.turns import Residency


class Arbitration(RuleBasedStateMachine):
    """Models join, ask, leave, refuse to leave, die: the ledger and the promises always hold."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = FaultPlan()
        driver = with_faults(open_host_driver(), self.plan)
        self.pages = PagePool(driver, BUDGET_PAGES * PAGE_BYTES, PAGE_BYTES)
        self.arbiter = Arbiter(self.pages, TURN_S)
        self.now_s = 0.0
        self.line: list[int] = []
        """Who waits, in order of asking."""
        self.later: list[int] = []
        """Who asked ahead."""
        self.count = 0

    def pick(self, data: st.DataObject, *states: Residency) -> int | None:
        keys = [m.key for m in self.arbiter.leases() if m.state in states and not m.fenced]
        return data.draw(st.sampled_from(keys)) if keys else None

    @precondition(lambda self: len(list(self.arbiter.leases())) < 6)
    @rule(pages=st.integers(1, BUDGET_PAGES), data=st.data())
    def join(self, pages: int, data: st.DataObject) -> None:
        self.count += 1
        joined(self.arbiter, f"model-{self.count}", pages, data.draw(st.integers(0, pages)))

    @rule(data=st.data(), early=st.booleans(), ahead=st.booleans())
    def request(self, data: st.DataObject, early: bool, ahead: bool) -> None:
        if (key := self.pick(data, Residency.OUT)) is not None:
            self.now_s += 0.01
            self.arbiter.request(key, self.now_s, early=early and not ahead, ahead=ahead)
            (self.later if ahead else self.line).append(key)

    @rule(data=st.data())
    def hurry(self, data: st.DataObject) -> None:
        if (key := self.pick(data, *Residency)) is not None:
            self.now_s += 0.01
            self.arbiter.hurry(key, self.now_s)
            if key in self.later:
                self.later.remove(key)
                self.line.append(key)

    @rule(data=st.data(), mapped=st.booleans())
    def cancel(self, data: st.DataObject, mapped: bool) -> None:
        if (key := self.pick(data, Residency.WAITING)) is not None:
            had, begun = self.pages.owned(key), self.arbiter.lease(key).begun
            assert self.arbiter.cancel(key, self.now_s, mapped=mapped)
            assert self.pages.owned(key) == (had if mapped else [])
            out = not self.pages.owned(key) or not begun
            state = Residency.OUT if out else Residency.LEAVING
            assert self.arbiter.lease(key).state is state
            self.forget(key)

    @rule(nth=st.integers(1, 3))
    def fail_to_create(self, nth: int) -> None:
        self.plan.arm(nth, 2)

    @rule(data=st.data(), idle=st.booleans())
    def set_idle(self, data: st.DataObject, idle: bool) -> None:
        if (key := self.pick(data, *Residency)) is not None:
            self.arbiter.set_idle(key, idle, self.now_s)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if (key := self.pick(data, Residency.LEAVING, Residency.RESIDENT)) is not None:
            self.arbiter.yielded(key, self.now_s)
            assert self.pages.owned(key) == []

    @rule(data=st.data())
    def leave_and_keep_some(self, data: st.DataObject) -> None:
        if (key := self.pick(data, Residency.LEAVING, Residency.RESIDENT)) is not None:
            owned, warmable = self.pages.owned(key), self.arbiter.lease(key).warmable
            if not (may := min(len(owned), warmable)):
                return
            keeps = data.draw(st.integers(1, may))
            if gone := owned[keeps:]:
                self.arbiter.shrink(key, gone, leaving=True)
            with pytest.raises(UsageError, match="holds"):
                self.arbiter.yielded(key, self.now_s, keeps + 1)
            self.arbiter.yielded(key, self.now_s, keeps)
            assert self.pages.owned(key) == owned[:keeps]
            assert self.arbiter.lease(key).state is Residency.OUT

    @rule(data=st.data(), some=st.booleans())
    def cool(self, data: st.DataObject, some: bool) -> None:
        """What was asked for, some of it, or none for the driver refuses; or what nobody asked."""
        key = self.pick(data, Residency.OUT, Residency.WAITING)
        if key is None or self.arbiter.lease(key).begun:
            return
        lease = self.arbiter.lease(key)
        owned = self.pages.owned(key)
        gone = data.draw(st.integers(0, len(owned))) if some else min(lease.cooling, len(owned))
        self.arbiter.shrink(key, owned[len(owned) - gone :], leaving=True)
        assert self.pages.owned(key) == owned[: len(owned) - gone]
        if lease.asked_to_cool:
            self.arbiter.cooled(key, self.now_s)
        else:
            with pytest.raises(UsageError, match="not asked"):
                self.arbiter.cooled(key, self.now_s)

    def forget(self, key: int) -> None:
        for waiting in (self.line, self.later):
            if key in waiting:
                waiting.remove(key)

    @rule(data=st.data(), pages=st.integers(0, BUDGET_PAGES))
    def extend(self, data: st.DataObject, pages: int) -> None:
        if (key := self.pick(data, *Residency)) is None:
            return
        lease = self.arbiter.lease(key)
        asked = 0
        held = lease.state in (Residency.LEAVING, Residency.RESIDENT)
        if held:
            warm = {m.key: m.cooling for m in self.arbiter.leases()}
            for cool in self.arbiter.make_room(key, pages, self.now_s):
                asked += cool.pages
                assert warm[cool.key] == 0 and self.arbiter.lease(cool.key).cooling == cool.pages
        free = self.pages.free_pages
        coming = sum(m.cooling for m in self.arbiter.leases())
        assert asked == 0 or asked == pages - free - (coming - asked)
        held = lease.state in (Residency.LEAVING, Residency.RESIDENT)
        if not held or pages == 0 or lease.held < lease.pages:
            with pytest.raises(UsageError):
                self.arbiter.extend(key, pages)
        elif pages > free:
            with pytest.raises(PoolFullError):
                self.arbiter.extend(key, pages)
        else:
            self.plan.disarm()
            assert len(self.arbiter.extend(key, pages)) == pages

    @rule(data=st.data(), leaving=st.booleans())
    def shrink(self, data: st.DataObject, leaving: bool) -> None:
        if (key := self.pick(data, Residency.LEAVING, Residency.RESIDENT)) is not None:
            owned = self.pages.owned(key)
            gone = data.draw(st.lists(st.sampled_from(owned), unique=True))
            if len(gone) == len(owned):
                with pytest.raises(UsageError):
                    self.arbiter.shrink(key, gone, leaving=leaving)
            else:
                needs = self.arbiter.lease(key).pages
                self.arbiter.shrink(key, gone, leaving=leaving)
                assert self.arbiter.lease(key).pages == needs - (0 if leaving else len(gone))

    @rule(data=st.data())
    def refuse_to_leave(self, data: st.DataObject) -> None:
        if (key := self.pick(data, Residency.LEAVING)) is not None:
            self.arbiter.keep(key, self.now_s)
            assert self.arbiter.lease(key).state is Residency.RESIDENT

    @rule(data=st.data(), fence=st.booleans())
    def die(self, data: st.DataObject, fence: bool) -> None:
        if (key := self.pick(data, *Residency)) is not None:
            self.forget(key)
            if fence:
                self.arbiter.fence(key, self.now_s)
            else:
                self.arbiter.remove(key)

    @rule()
    def bury(self) -> None:
        for key in [m.key for m in self.arbiter.leases() if m.fenced]:
            self.arbiter.remove(key)

    @rule(passed_s=st.sampled_from([0.0, 0.5, TURN_S]))
    def decide(self, passed_s: float) -> None:
        self.now_s += passed_s
        before = {m.key: replace(m) for m in self.arbiter.leases()}
        had = {m.key: self.pages.owned(m.key) for m in self.arbiter.leases()}
        outcome = self.arbiter.decide(self.now_s)
        self.plan.disarm()
        for key, _ in outcome.failed:
            self.forget(key)
            assert self.pages.owned(key) == had[key]
            assert self.arbiter.lease(key).state is self.without(key, before[key].begun)
        granted = [g.key for g in outcome.granted]
        line = self.line + self.later
        assert granted == line[: len(granted)], "somebody was overtaken"
        for key in granted:
            self.forget(key)
        line = line[len(granted) :]
        for grant in outcome.granted:
            assert not before[grant.key].asked_to_cool, "who is asked for pages is granted some"
            assert sorted(grant.pages + had[grant.key]) == self.pages.owned(grant.key)
            assert len(self.pages.owned(grant.key)) == self.arbiter.lease(grant.key).pages
        for begun in outcome.begun:
            lease = self.arbiter.lease(begun.key)
            assert begun.key == self.line[0] and lease.early and lease.begun
            assert lease.held <= lease.warmable
        for revoke in outcome.revoked:
            was = before[revoke.key]
            assert was.state is Residency.RESIDENT
            assert was.idle or (self.now_s >= was.since_s + TURN_S and line[0] in self.line)
            assert revoke.keep <= was.warmable
        for cool in outcome.cooled:
            was = before[cool.key]
            assert was.state in (Residency.OUT, Residency.WAITING) and not was.begun
            assert cool.key not in granted, "granted and asked for pages at once"
            assert 0 < cool.pages <= was.held and not was.asked_to_cool
        if outcome.revoked or outcome.cooled:
            leases = list(self.arbiter.leases())
            coming = sum(m.held - m.keep for m in leases if m.state is Residency.LEAVING)
            coming += sum(m.cooling for m in leases)
            first = self.arbiter.lease(line[0])
            has = first.held + self.pages.free_pages
            assert first.pages <= has + coming, "asked for in vain"

    def without(self, key: int, begun: bool) -> Residency:
        """Where a model is that is granted no more."""
        return Residency.LEAVING if begun and self.pages.owned(key) else Residency.OUT

    @invariant()
    def memory_accounted_is_memory_held(self) -> None:
        held = 0
        for lease in self.arbiter.leases():
            owned = len(self.pages.owned(lease.key))
            assert owned == lease.held <= lease.pages or (lease.pages == 0 and owned == 0)
            if lease.state in (Residency.WAITING, Residency.OUT):
                assert owned <= lease.warmable
                assert not lease.begun or lease.key == self.line[0], "only the first begins"
            assert lease.cooling <= lease.held
            held += owned
        assert held + self.pages.free_pages == BUDGET_PAGES


TestArbitration = Arbitration.TestCase
TestArbitration.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("first", [0, 1])
def test_who_leaves_first_by_rank_is_reckoned_to_leave_first(first: int) -> None:
    """Of pages that two have, the one who is asked first leaves them to the other."""
    pool = PagePool(open_host_driver(), 6 * PAGE_BYTES, PAGE_BYTES)
    arbiter = Arbiter(pool, TURN_S)
    contents = {0: b"a" * 32, 1: b"b" * 32}
    sharers = []
    for name in ("x", "y"):
        key = arbiter.add(name, 0.0)
        arbiter.declare(key, 3, warmable=3, contents=contents)
        arbiter.set_idle(key, False, 0.0)
        arbiter.request(key, 0.0)
        (granted,) = arbiter.decide(0.0).granted
        arbiter.has(key, granted.shared or dict(enumerate(granted.pages[:2])))
        sharers.append(key)
    waiting = joined(arbiter, "z", 4)
    for key in sharers:
        arbiter.lease(key).rank = 2 if key == sharers[first] else 1
        arbiter.lease(key).turn_ends_s = 0.0
    arbiter.request(waiting, 1.0)
    revoked = arbiter.decide(1.0).revoked
    # Free are 2 pages; the first to leave gives its own alone, so the other gives one of its three.
    assert [(revoke.key, revoke.keep) for revoke in revoked] == [
        (sharers[first], 0),
        (sharers[1 - first], 2),
    ]
