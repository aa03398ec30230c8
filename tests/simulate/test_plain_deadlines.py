"""The quick decisions of ``schedule.deadlines`` are those of its plain version, one by one."""

from __future__ import annotations

from collections import Counter

import plain_deadlines
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.schedule import deadlines
from gpupool.schedule.costs import Costs
from gpupool.schedule.work import Batch, Device, Goals, Request, State

NOW_S = 100.0
MODELS = 8
SHARES = st.sampled_from([0.0, 0.3, 1.0])
COSTS = st.builds(
    Costs,
    st.tuples(st.just(0.01), st.just(2e-5), st.sampled_from([0.0, 1e-9])),
    st.tuples(st.floats(0.001, 0.05), st.just(1e-7), st.just(1e-4)),
    st.floats(0.05, 3),
    st.just(1e-5),
    st.sampled_from([600, 5000]),
)
GOALS = st.builds(Goals, st.sampled_from([1.0, 10.0]), st.sampled_from([0.05, 0.2, 2.0]))
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from([NOW_S, 97.5, 60.0]) | st.floats(60, NOW_S),
        st.integers(1, 400),
        st.sampled_from([0, 1, 100]) | st.integers(0, 300),
        st.sampled_from([False, True, True, True]),
    ),
    min_size=1,
    max_size=5,
)


@st.composite
def devices(draw: st.DrawFn, key: int) -> Device:
    """In any state that it could be in, and some in which it could not."""
    batches = []
    for model in draw(st.lists(st.integers(0, MODELS - 1), unique=True, max_size=MODELS)):
        requests = [Request(key, model, *rest) for key, rest in enumerate(draw(REQUESTS))]
        batches.append(Batch(model, requests, ran_s=draw(st.sampled_from([50.0, 90.0, 99.0]))))
    device = Device(key, batches=batches)
    models = [batch.model for batch in batches]
    device.model = draw(st.none() | st.sampled_from([*models, 0]))
    gone = Batch(0, [])
    device.current = draw(st.none() | st.sampled_from([*batches, gone]))
    if device.current is not None and draw(st.booleans()):
        device.model = device.current.model
    device.turn_ends_s = draw(st.sampled_from([99.0, NOW_S, 100.5]))
    device.committed = draw(st.booleans())
    device.resident = draw(st.dictionaries(st.integers(0, MODELS - 1), SHARES))
    return device


@st.composite
def calm_states(draw: st.DrawFn) -> State:
    """Most have tokens ahead: a turn goes on, or there may be time to visit who waits."""
    batches = []
    for model in range(draw(st.integers(2, 6))):
        waits = draw(st.integers(0, 2)) == 0
        produced = 0 if waits else draw(st.sampled_from([5, 40]))
        request = Request(model, model, NOW_S - draw(st.floats(0, 8)), 100, produced, not waits)
        batches.append(Batch(model, [request], ran_s=90.0 + model))
    device = Device(0, batches=batches, model=0, current=batches[0])
    device.turn_ends_s = draw(st.sampled_from([0.0, NOW_S + 0.5]))
    device.resident = draw(st.dictionaries(st.integers(0, 5), SHARES, min_size=3))
    costs = {
        model: Costs((0.01, 2e-5, 0.0), (draw(st.floats(0.005, 0.06)), 0.0, 0.0), 1.0, 1e-5, 5000)
        for model in range(MODELS)
    }
    return State([device], costs, Goals(10.0, 0.2), ready=[device])


@st.composite
def states(draw: st.DrawFn, *, arrives: bool) -> State:
    """Several devices, one of which is ready, and perhaps a request that has no place."""
    found = State(
        [draw(devices(key)) for key in range(draw(st.integers(1, 3)))],
        {model: draw(COSTS) for model in range(MODELS)},
        draw(GOALS),
        draw(st.dictionaries(st.integers(0, MODELS - 1), GOALS)),
        draw(st.dictionaries(st.integers(0, MODELS - 1), st.sampled_from([0.1, 2.0, 5.0]))),
        patience_s=draw(st.none() | st.just(2.0)),
    )
    if arrives:
        model, prompt = draw(st.integers(0, MODELS - 1)), draw(st.sampled_from([100, 500, 601]))
        found.arrived.append(Request(1000, model, NOW_S, prompt))
    found.ready.append(draw(st.sampled_from(found.devices)))
    return found


def test_every_decision_is_that_of_the_plain_version() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=600)
    @given(states(arrives=True) | states(arrives=False) | calm_states())
    def compare(state: State) -> None:
        actions = deadlines.decide(state, NOW_S)
        assert actions == plain_deadlines.decide(state, NOW_S)
        for action in actions:
            begins = getattr(action, "turn_s", None) is not None
            seen[type(action).__name__ + (" of a new turn" if begins else "")] += 1

    compare()
    kinds = ("Join", "Drop", "Refuse", "Switch", "Rest", "Prefill", "Decode")
    for kind in (*kinds, "Prefill of a new turn", "Decode of a new turn"):
        assert seen[kind] >= 1, seen
