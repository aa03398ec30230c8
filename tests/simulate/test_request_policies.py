"""What the policies of requests promise, on made-up scenarios in simulated time."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from policies_bench import (
    CAPACITY,
    DECIDES,
    KV_TOKENS,
    PROMPT_TOKENS_MAX,
    SWITCH_S_MAX,
    costs_of,
    serve,
)

from gpupool.schedule import deadlines
from gpupool.schedule.rounds import TURN_S_MAX
from gpupool.schedule.work import (
    Action,
    Decode,
    Device,
    Goals,
    Prefill,
    Refuse,
    Request,
    State,
    Switch,
)

REQUESTS = st.lists(
    st.tuples(
        st.floats(0, 20), st.integers(0, 5), st.integers(1, PROMPT_TOKENS_MAX), st.integers(1, 300)
    ),
    min_size=1,
    max_size=40,
)


# Of model 2, some of whose requests cannot run beside the others.
MORE_KV_THAN_FITS = [
    *((0.0, 0, 160, 243), (0.0, 0, 362, 243), (0.0, 0, 425, 222), (0.0, 0, 428, 177)),
    *((0.0, 1, 1, 243), (0.0, 2, 1, 244), (0.0, 2, 236, 244), (0.0, 2, 319, 244)),
    *((14.0, 1, 1, 111), (16.0, 2, 446, 76), (5.5, 0, 133, 300), (16.25, 2, 389, 13)),
    (0.25, 0, 274, 117),
]


# Requests of one model that cannot be prefilled together.
TOO_MANY_AT_ONCE = [(0.0, 5, 600, 300)] * 4
# A request that cannot be prefilled beside those that run.
NO_ROOM_BESIDE = [(0.0, 5, 600, 300), (0.0, 5, 600, 300), (0.0, 5, 600, 300), (2.0, 5, 600, 300)]

# Five requests of one model whose answers outgrow the room for its KV.
OUTGROW = [(0.1 * place, 5, 300, 300) for place in range(5)]


@pytest.mark.parametrize("name", DECIDES)
@settings(max_examples=150)
@example(OUTGROW, 1, 0)
@example(MORE_KV_THAN_FITS, 1, 0)
@example(TOO_MANY_AT_ONCE, 1, 0)
@example(NO_ROOM_BESIDE, 1, 0)
@given(REQUESTS, st.integers(1, 4), st.integers(0, 1))
def test_every_request_ends_and_memory_is_never_over_committed(
    name: str, arrivals: list[tuple[float, int, int, int]], devices: int, split: int
) -> None:
    engine, loader, requests = serve(name, arrivals, devices, min(split, devices - 1))
    assert all(engine.tallies[r.key].tokens == arrivals_of(arrivals)[r.key] for r in requests)
    assert loader.bytes_max <= CAPACITY + 1e-6
    for device in engine.state.devices:
        assert not device.batches and not device.groups


def arrivals_of(arrivals: list[tuple[float, int, int, int]]) -> list[int]:
    return [outputs for *_, outputs in sorted(arrivals)]


@pytest.mark.parametrize("name", DECIDES)
@settings(max_examples=30)
@given(REQUESTS)
def test_the_same_requests_are_served_the_same_way(
    name: str, arrivals: list[tuple[float, int, int, int]]
) -> None:
    first, second = (serve(name, arrivals, 2)[0] for _ in range(2))
    assert [t.last_s for t in first.tallies.values()] == [t.last_s for t in second.tallies.values()]
    assert first.switches == second.switches


@pytest.mark.parametrize("name", DECIDES)
@settings(max_examples=50)
@given(REQUESTS)
def test_with_patience_a_request_is_served_or_given_up(
    name: str, arrivals: list[tuple[float, int, int, int]]
) -> None:
    engine, _, requests = serve(name, arrivals, 1, patience_s=3.0)
    for request in requests:
        tally = engine.tallies[request.key]
        assert tally.dropped != (tally.tokens == tally.output_tokens)


WEIGHTS = st.dictionaries(st.integers(0, 5), st.sampled_from([0.25, 1.0, 3.0]))


TOO_SLOW = 8.0
"""So slow all models together take more time than there is to keep any two of them on time."""


def bound_s(
    models: int,
    weights: dict[int, float],
    model: int,
    fixed_s: float = 0.0,
    slow: float = 1.0,
) -> float:
    """How long a request may wait for its prefill."""
    heaviest = max(weights.get(other, 1.0) for other in range(6))
    return deadlines.wait_s_max(
        Goals(),
        models,
        switch_s=SWITCH_S_MAX + fixed_s,
        step_s=max(PREFILL_S_MAX, 0.03 * slow),
        ahead_s=0.0,
        weight_ratio=heaviest / weights.get(model, 1.0),
    )


@settings(max_examples=150)
@given(
    REQUESTS,
    st.integers(1, 3),
    st.just({}) | WEIGHTS,
    st.none() | st.floats(0.01, 3),
    st.sampled_from([1.0, TOO_SLOW]),
)
def test_nobody_waits_longer_than_the_stated_bound(
    arrivals: list[tuple[float, int, int, int]],
    devices: int,
    weights: dict[int, float],
    fixed_s: float | None,
    slow: float,
) -> None:
    engine, _, requests = serve(
        "deadlines", arrivals, devices, weights=weights, fixed_s=fixed_s, slow=slow
    )
    models = len({model for _, model, *_ in arrivals})
    for request in requests:
        tally = engine.tallies[request.key]
        assert tally.first_s is not None
        # Who finds no room for its KV waits also for those of its own batch; here all fit.
        if sum(n + out for _, model, n, out in arrivals if model == request.model) <= KV_TOKENS:
            most_s = bound_s(models, weights, request.model, fixed_s or 0.0, slow)
            assert tally.first_s - request.arrival_s <= most_s


@settings(max_examples=8)
@given(WEIGHTS)
def test_nobody_starves_however_long_there_is_too_much_to_do(weights: dict[int, float]) -> None:
    # Models 0 to 4 have one endless answer after another, more than the device can do in time;
    # now and then somebody asks for model 5.
    arrivals = [(20.0 * turn, model, 10, 1200) for turn in range(6) for model in range(5)]
    arrivals += [(7.0 + 30 * turn, 5, 10, 5) for turn in range(5)]
    engine, _, requests = serve("deadlines", arrivals, 1, weights=weights)
    waits_s = [
        (engine.tallies[r.key].first_s or float("inf")) - r.arrival_s
        for r in requests
        if r.model == 5
    ]
    assert engine.now_s > 150, "it had time enough for all"
    assert 5 < max(waits_s) <= bound_s(6, weights, 5)


@pytest.mark.parametrize("heavy", range(6))
def test_where_not_all_can_be_on_time_more_weight_is_more_turns(heavy: int) -> None:
    """Models k and k + 3 are alike, and a device cannot keep up with all six."""
    arrivals = [(0.0, model, 10, 1500) for model in range(6)]
    engine, _, requests = serve("deadlines", arrivals, 1, weights={heavy: 4.0})
    tallies = {request.model: engine.tallies[request.key] for request in requests}
    twin = (heavy + 3) % 6
    assert tallies[heavy].last_s < tallies[twin].last_s
    assert tallies[heavy].on_time > tallies[twin].on_time


PREFILL_S_MAX = 0.03 + 2e-5 * KV_TOKENS


@settings(max_examples=150)
@given(REQUESTS, st.sampled_from([1.0, TOO_SLOW]))
def test_no_turn_is_cut_short_to_switch(
    arrivals: list[tuple[float, int, int, int]], slow: float
) -> None:
    """A device switches only when its turn is over or its batch has nothing to run."""
    seen: list[tuple[float, float]] = []
    real = deadlines.decide

    def watched(state: State, now_s: float) -> list[Action]:
        actions = real(state, now_s)
        for action in actions:
            if isinstance(action, Switch):
                device = action.device
                if device.current in device.batches:
                    seen.append((now_s, device.turn_ends_s))
            if isinstance(action, Decode | Prefill) and action.turn_s is not None:
                assert deadlines.TURN_S_MIN <= action.turn_s <= TURN_S_MAX
        return actions

    DECIDES["deadlines"] = watched
    try:
        serve("deadlines", arrivals, 1, slow=slow)
    finally:
        DECIDES["deadlines"] = real
    assert all(now_s >= ends_s for now_s, ends_s in seen)


def test_what_fits_nowhere_is_refused_at_the_door() -> None:
    state = State([Device(0)], {0: costs_of(0)})
    state.arrived.append(Request(0, 0, 0.0, KV_TOKENS + 1))
    (action, *_) = deadlines.decide(state, 0.0)
    assert isinstance(action, Refuse)
    assert str(KV_TOKENS + 1) in action.why
