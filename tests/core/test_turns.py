"""The policy of turns: on random states, and in simulated time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from gpupool.schedule.turns import ModelView, PoolView, Residency, decide

OUT, WAITING = Residency.OUT, Residency.WAITING
RESIDENT, LEAVING = Residency.RESIDENT, Residency.LEAVING
TURN_S = 2.0


@st.composite
def pools(draw: st.DrawFn) -> PoolView:
    """Any state a pool can be in: what is resident or leaving is within the budget."""
    budget = draw(st.integers(1, 12))
    free = budget
    models = []
    for key in range(draw(st.integers(0, 7))):
        pages = draw(st.integers(1, budget))
        state = draw(st.sampled_from(Residency))
        if state in (RESIDENT, LEAVING):
            if pages > free:
                state = OUT
            else:
                free -= pages
        since_s, used_s = draw(st.integers(0, 10)), draw(st.integers(0, 10))
        stays_s = draw(st.sampled_from((0, 0, 5, 13)))
        begins_with = draw(st.integers(0, pages)) if state is WAITING else 0
        idle = draw(st.booleans())
        models.append(ModelView(key, pages, state, since_s, used_s, idle, stays_s, begins_with))
    return PoolView(free, tuple(models))


def in_line(view: PoolView) -> list[ModelView]:
    return sorted((m for m in view.models if m.state is WAITING), key=lambda m: (m.since_s, m.key))


def pages_of(view: PoolView, keys: tuple[int, ...]) -> int:
    return sum(m.pages for m in view.models if m.key in keys)


@given(pools(), st.integers(0, 12))
def test_grants_follow_the_line_and_fit(view: PoolView, now_s: int) -> None:
    decision = decide(view, now_s, TURN_S)
    assert list(decision.grant) == [m.key for m in in_line(view)][: len(decision.grant)]
    assert pages_of(view, decision.grant) <= view.free_pages


@given(pools(), st.integers(0, 12))
def test_whoever_can_be_granted_is(view: PoolView, now_s: int) -> None:
    decision = decide(view, now_s, TURN_S)
    left = view.free_pages - pages_of(view, decision.grant)
    rest = in_line(view)[len(decision.grant) :]
    assert not rest or rest[0].pages > left


@given(pools(), st.integers(0, 12))
def test_a_revoke_makes_room_for_the_first_in_line(view: PoolView, now_s: int) -> None:
    decision = decide(view, now_s, TURN_S)
    if not decision.revoke:
        return
    first = in_line(view)[len(decision.grant)]
    leaving = tuple(m.key for m in view.models if m.state is LEAVING)
    room = view.free_pages - pages_of(view, decision.grant) + pages_of(view, leaving)
    assert room < first.pages <= room + pages_of(view, decision.revoke)
    last = decision.revoke[-1:]
    assert first.pages > room + pages_of(view, decision.revoke) - pages_of(view, last)


@given(pools(), st.integers(0, 12))
def test_only_the_first_in_line_begins_and_only_while_room_is_made(
    view: PoolView, now_s: int
) -> None:
    decision = decide(view, now_s, TURN_S)
    left = view.free_pages - pages_of(view, decision.grant)
    rest = in_line(view)[len(decision.grant) :]
    leaving = tuple(m.key for m in view.models if m.state is LEAVING) + decision.revoke
    begins = (
        bool(rest)
        and 0 < rest[0].begins_with <= left
        and rest[0].pages <= left + pages_of(view, leaving)
    )
    assert decision.begin == (rest[0].key if begins else None)


@given(pools(), st.integers(0, 12))
def test_busy_models_keep_their_turn_and_idle_ones_go_first(view: PoolView, now_s: int) -> None:
    decision = decide(view, now_s, TURN_S)
    models = {m.key: m for m in view.models}
    revoked = [models[key] for key in decision.revoke]
    assert all(m.state is RESIDENT for m in revoked)
    assert all(m.idle or now_s >= m.since_s + TURN_S for m in revoked)
    assert all(now_s >= m.stays_until_s for m in revoked)
    if any(not m.idle for m in revoked):
        idle = {m.key for m in view.models if m.state is RESIDENT and m.idle}
        assert idle <= set(decision.revoke) | {
            m.key for m in view.models if m.stays_until_s > now_s
        }
    idle_used_s = [m.used_s for m in revoked if m.idle]
    assert idle_used_s == sorted(idle_used_s)


@given(pools(), st.integers(0, 12))
def test_a_later_look_is_asked_for_only_when_it_helps(view: PoolView, now_s: int) -> None:
    decision = decide(view, now_s, TURN_S)
    if decision.wake_at_s is None:
        return
    assert decision.wake_at_s > now_s
    assert not decision.revoke
    ends_s = {m.stays_until_s for m in view.models} | {m.since_s + TURN_S for m in view.models}
    assert decision.wake_at_s in ends_s


def test_with_turns_of_no_length_the_least_recently_used_idle_model_leaves() -> None:
    models = (
        ModelView(1, 2, RESIDENT, since_s=0.0, used_s=5.0, idle=True),
        ModelView(2, 2, RESIDENT, since_s=1.0, used_s=3.0, idle=True),
        ModelView(3, 2, WAITING, since_s=6.0, used_s=0.0, idle=False),
    )
    assert decide(PoolView(0, models), 6.0, 0.0).revoke == (2,)


@dataclass
class Simulated:
    """A pool in simulated time: every model wants in, all the time, and leaves when told to."""

    view: PoolView
    now_s: float
    leave_s: float
    asked_s: dict[int, float]
    waits_s: list[float]
    granted: list[int]

    def step(self) -> None:
        decision = decide(self.view, self.now_s, TURN_S)
        for key in decision.grant:
            self._set(key, RESIDENT)
            self.waits_s.append(self.now_s - self.asked_s[key])
            self.granted.append(key)
        for key in decision.revoke:
            self._set(key, LEAVING)
        used = sum(m.pages for m in self.view.models if m.state in (RESIDENT, LEAVING))
        self.view = replace(self.view, free_pages=self.budget - used)
        assert self.view.free_pages >= 0
        leaving = [m for m in self.view.models if m.state is LEAVING]
        if leaving:
            self.now_s += self.leave_s
            for model in leaving:
                self.asked_s[model.key] = self.now_s
                self._set(model.key, WAITING)
                self.view = replace(self.view, free_pages=self.view.free_pages + model.pages)
        elif decision.wake_at_s is not None:
            self.now_s = decision.wake_at_s
        else:
            assert not in_line(self.view) or decision.grant, "nothing moves any more"

    def _set(self, key: int, state: Residency) -> None:
        self.view = replace(
            self.view,
            models=tuple(
                replace(m, state=state, since_s=self.now_s, used_s=self.now_s)
                if m.key == key
                else m
                for m in self.view.models
            ),
        )

    budget: int = 0


@given(
    st.integers(1, 10).flatmap(
        lambda budget: st.tuples(
            st.just(budget), st.lists(st.integers(1, budget), min_size=1, max_size=7)
        )
    ),
    st.floats(0.0, 1.0),
)
def test_nobody_starves_among_busy_models(pool: tuple[int, list[int]], leave_s: float) -> None:
    budget, sizes = pool
    models = tuple(
        ModelView(key, pages, WAITING, 0.0, 0.0, idle=False) for key, pages in enumerate(sizes)
    )
    asked_s = dict.fromkeys(range(len(sizes)), 0.0)
    run = Simulated(PoolView(budget, models), 0.0, leave_s, asked_s, [], [], budget)
    for _ in range(200):
        run.step()
    assert set(run.granted) == set(range(len(sizes)))
    # n models: at most n turns, and as many times the time it takes to leave.
    assert max(run.waits_s) <= len(sizes) * (TURN_S + leave_s) + 1e-6
