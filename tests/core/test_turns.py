"""The policy of turns: on random states, and in simulated time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from gpupool.schedule.turns import Begin, Decision, ModelView, PoolView, Residency, Revoke, decide

OUT, WAITING = Residency.OUT, Residency.WAITING
RESIDENT, LEAVING = Residency.RESIDENT, Residency.LEAVING
TURN_S = 2.0


@st.composite
def pools(draw: st.DrawFn) -> PoolView:
    """Any state a pool can be in: what models have is within the budget."""
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
        idle = draw(st.booleans())
        model = ModelView(key, pages, state, since_s, used_s, idle, stays_s)
        if state is RESIDENT:
            model = replace(model, warmable=draw(st.integers(0, pages)))
        elif state in (OUT, WAITING):
            warm = draw(st.integers(0, free))
            free -= warm
            model = replace(model, warm=warm, answers=draw(st.booleans()))
            if not model.answers:
                model = replace(model, cooling=draw(st.integers(0, warm)))
        if state is WAITING:
            begins_with, ahead = draw(st.integers(0, pages)), draw(st.booleans())
            model = replace(model, begins_with=begins_with, ahead=ahead)
        models.append(model)
    return PoolView(free, tuple(models))


def in_line(view: PoolView) -> list[ModelView]:
    waiting = [m for m in view.models if m.state is WAITING]
    return sorted(waiting, key=lambda m: (m.ahead, m.since_s, m.key))


def pages_of(view: PoolView, keys: Iterable[int]) -> int:
    return sum(m.pages for m in view.models if m.key in set(keys))


def room(view: PoolView, decision: Decision) -> int:
    """What will be free once all give what they were asked for before, after what is granted."""
    left = view.free_pages - pages_of(view, decision.grant)
    coming = pages_of(view, (m.key for m in view.models if m.state is LEAVING))
    return left + coming + sum(m.cooling for m in view.models)


def gives(view: PoolView, revokes: Iterable[Revoke]) -> int:
    return sum(pages_of(view, [revoke.key]) - revoke.keep for revoke in revokes)


@given(pools(), st.integers(0, 12))
def test_grants_follow_the_line_and_fit(view: PoolView, now_s: int) -> None:
    decision = decide(view, now_s, TURN_S)
    assert list(decision.grant) == [m.key for m in in_line(view)][: len(decision.grant)]
    assert pages_of(view, decision.grant) <= view.free_pages
    assert all(m.answers for m in view.models if m.key in decision.grant)


@given(pools(), st.integers(0, 12))
def test_whoever_can_be_granted_is(view: PoolView, now_s: int) -> None:
    decision = decide(view, now_s, TURN_S)
    left = view.free_pages - pages_of(view, decision.grant)
    rest = in_line(view)[len(decision.grant) :]
    assert not rest or not rest[0].answers or rest[0].pages > left


@given(pools(), st.integers(0, 12))
def test_just_so_much_room_is_made_for_the_first_in_line(view: PoolView, now_s: int) -> None:
    decision = decide(view, now_s, TURN_S)
    if not decision.revoke and not decision.cool:
        return
    first = in_line(view)[len(decision.grant)]
    cooled = sum(cool.pages for cool in decision.cool)
    missing = first.pages - room(view, decision)
    assert missing > 0
    assert cooled <= missing <= cooled + gives(view, decision.revoke)
    if decision.revoke:
        assert cooled < missing
        *_, last = decision.revoke
        assert missing > cooled + gives(view, decision.revoke[:-1]), "one too many"
        spare = cooled + gives(view, decision.revoke) - missing
        models = {m.key: m for m in view.models}
        assert all(revoke.keep == 0 for revoke in decision.revoke[:-1])
        assert spare == 0 or last.keep == models[last.key].warmable


@given(pools(), st.integers(0, 12))
def test_warm_pages_go_before_models_and_the_oldest_first(view: PoolView, now_s: int) -> None:
    decision = decide(view, now_s, TURN_S)
    models = {m.key: m for m in view.models}
    besides = in_line(view)[: len(decision.grant) + 1]  # who is granted, and who asks
    can = [
        m.key
        for m in sorted(view.models, key=lambda m: (m.state is WAITING, m.used_s, m.key))
        if m.warm > 0 and m.answers and m.stays_until_s <= now_s and m not in besides
    ]
    asked = [cool.key for cool in decision.cool]
    assert asked == can[: len(asked)]
    assert all(0 < cool.pages <= models[cool.key].warm for cool in decision.cool)
    assert all(cool.pages == models[cool.key].warm for cool in decision.cool[:-1])
    if decision.revoke:
        assert asked == can
        assert sum(cool.pages for cool in decision.cool) == sum(models[key].warm for key in can)


@given(pools(), st.integers(0, 12))
def test_only_the_first_in_line_begins_and_only_while_room_is_made(
    view: PoolView, now_s: int
) -> None:
    decision = decide(view, now_s, TURN_S)
    left = view.free_pages - pages_of(view, decision.grant)
    rest = in_line(view)[len(decision.grant) :]
    made = sum(cool.pages for cool in decision.cool) + gives(view, decision.revoke)
    begins = (
        bool(rest)
        and rest[0].answers
        and min(rest[0].begins_with, left) > 0
        and rest[0].pages <= room(view, decision) + made
    )
    assert decision.begin == (
        Begin(rest[0].key, min(rest[0].begins_with, left)) if begins else None
    )


@given(pools(), st.integers(0, 12))
def test_busy_models_keep_their_turn_and_idle_ones_go_first(view: PoolView, now_s: int) -> None:
    decision = decide(view, now_s, TURN_S)
    models = {m.key: m for m in view.models}
    revoked = [models[revoke.key] for revoke in decision.revoke]
    assert all(m.state is RESIDENT for m in revoked)
    assert all(m.idle or now_s >= m.since_s + TURN_S for m in revoked)
    assert all(now_s >= m.stays_until_s for m in revoked)
    if any(not m.idle for m in revoked):
        assert not in_line(view)[len(decision.grant)].ahead
        idle = {m.key for m in view.models if m.state is RESIDENT and m.idle}
        assert idle <= {m.key for m in revoked} | {
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
    assert decide(PoolView(0, models), 6.0, 0.0).revoke == (Revoke(2),)


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
        for revoke in decision.revoke:
            self._set(revoke.key, LEAVING)
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
