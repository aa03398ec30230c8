"""What the policies of requests promise, on made-up scenarios in simulated time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpupool.schedule import aegaeon, deadlines, fcfs
from gpupool.schedule.costs import Costs
from gpupool.schedule.rounds import TURN_S_MAX
from gpupool.schedule.work import (
    Action,
    Decode,
    Device,
    Goals,
    Join,
    Prefill,
    Refuse,
    Request,
    Rest,
    Round,
    State,
    Switch,
)
from gpupool.simulate.engine import Engine, Policy
from gpupool.simulate.holding import Sizes
from gpupool.simulate.residency import ResidentLoader

DECIDES = {"fcfs": fcfs.decide, "aegaeon": aegaeon.decide, "deadlines": deadlines.decide}
CAPACITY = 100.0
KV_TOKENS = 2000
PROMPT_TOKENS_MAX = 600
SWITCH_S_MAX = 1.0

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


def costs_of(model: int, fixed_s: float = 0.0) -> Costs:
    """Larger models are slower."""
    size = 1 + model % 3
    return Costs(
        (0.01 * size, 2e-5, 0.0),
        (0.008 * size, 1e-7, 5e-5),
        0.3 * size + fixed_s,
        1e-5,
        KV_TOKENS,
        fixed_s,
    )


class Checked:
    """A policy whose every action is looked at before it is taken."""

    def __init__(self, name: str) -> None:
        self.decide_bare: Callable[[State, float], list[Action]] = DECIDES[name]
        self.engine: Engine | None = None
        self.rounds_without_time = 0
        self.last_s = -1.0

    def __call__(self, state: State, now_s: float) -> list[Action]:
        assert self.engine is not None
        self.rounds_without_time = 0 if now_s > self.last_s else self.rounds_without_time + 1
        assert self.rounds_without_time < 1000, "it decides for ever"
        self.last_s = now_s
        actions = self.decide_bare(state, now_s)
        assert self.decide_bare(state, now_s) == actions, "the same state, other actions"
        for action in actions:
            self.look_at(state, action)
        return actions

    def look_at(self, state: State, action: Action) -> None:
        match action:
            case Join(request, device, batch, _):
                assert request in (*state.arrived, *state.prefilled)
                assert batch is None or batch.model == request.model
                assert batch is None or batch in (*device.batches, *device.groups)
            case Switch(device, batch, _):
                self.is_free(state, device)
                assert batch.model != device.model
                assert batch.requests
            case Prefill(device, batch, requests, _, _):
                self.is_free(state, device)
                assert device.model == batch.model, "it runs without its weights"
                assert requests and not any(request.prefilled for request in requests)
                assert sum(r.context_tokens for r in requests) <= KV_TOKENS
                assert device.prefills
            case Decode(device, batch, turn_s, _):
                self.is_free(state, device)
                assert device.model == batch.model, "it runs without its weights"
                assert batch.fitting(KV_TOKENS)
                assert device.decodes
                assert turn_s is None or turn_s > 0
            case Rest(device, _) | Round(device, _):
                self.is_free(state, device)

    def is_free(self, state: State, device: Device) -> None:
        assert device in state.ready, "something is under way there"


def serve(
    name: str,
    arrivals: list[tuple[float, int, int, int]],
    devices: int,
    prefill_devices: int = 0,
    patience_s: float | None = None,
    weights: dict[int, float] | None = None,
    fixed_s: float | None = None,
) -> tuple[Engine, ResidentLoader, list[Request]]:
    ordered = sorted(arrivals)
    requests = [Request(k, model, at_s, n) for k, (at_s, model, n, _) in enumerate(ordered)]
    costs = {model: costs_of(model, fixed_s or 0.0) for model in range(6)}
    sizes = {
        model: Sizes(15.0 * (1 + model % 3), 0.025, 1e-5, fixed_s, fixed_s and 0.02)
        for model in range(6)
    }
    loader = ResidentLoader(
        sizes,
        capacity_bytes=CAPACITY,
        link_bytes_per_s=50.0,
        switch_s_min=0.01,
        warm=name == "deadlines",
    )
    split = prefill_devices if name == "aegaeon" else 0
    state = State(
        [Device(k, not split or k < split, k >= split) for k in range(devices)],
        costs,
        Goals(),
        weights=weights or {},
        patience_s=patience_s,
    )
    checked = Checked(name)
    policy = Policy(checked, replans=name == "deadlines")
    engine = Engine(state, policy, loader, [outputs for *_, outputs in ordered])
    checked.engine = engine
    engine.run(requests, None)
    return engine, loader, requests


# Five requests of one model whose answers outgrow the room for its KV.
OUTGROW = [(0.1 * place, 5, 300, 300) for place in range(5)]


@pytest.mark.parametrize("name", DECIDES)
@settings(max_examples=150)
@example(OUTGROW, 1, 0)
@example(MORE_KV_THAN_FITS, 1, 0)
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


def bound_s(models: int, weights: dict[int, float], model: int, fixed_s: float = 0.0) -> float:
    """How long a request may wait for its prefill."""
    heaviest = max(weights.get(other, 1.0) for other in range(6))
    return deadlines.wait_s_max(
        Goals(),
        models,
        switch_s=SWITCH_S_MAX + fixed_s,
        step_s=PREFILL_S_MAX,
        ahead_s=0.0,
        weight_ratio=heaviest / weights.get(model, 1.0),
    )


@settings(max_examples=150)
@given(REQUESTS, st.integers(1, 3), st.just({}) | WEIGHTS, st.none() | st.floats(0.01, 3))
def test_nobody_waits_longer_than_the_stated_bound(
    arrivals: list[tuple[float, int, int, int]],
    devices: int,
    weights: dict[int, float],
    fixed_s: float | None,
) -> None:
    engine, _, requests = serve("deadlines", arrivals, devices, weights=weights, fixed_s=fixed_s)
    models = len({model for _, model, *_ in arrivals})
    for request in requests:
        tally = engine.tallies[request.key]
        assert tally.first_s is not None
        # Who finds no room for its KV waits also for those of its own batch; here all fit.
        if sum(n + out for _, model, n, out in arrivals if model == request.model) <= KV_TOKENS:
            most_s = bound_s(models, weights, request.model, fixed_s or 0.0)
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
@given(REQUESTS)
def test_no_turn_is_cut_short_to_switch(arrivals: list[tuple[float, int, int, int]]) -> None:
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
        serve("deadlines", arrivals, 1)
    finally:
        DECIDES["deadlines"] = real
    assert all(now_s >= ends_s for now_s, ends_s in seen)


def test_what_fits_nowhere_is_refused_at_the_door() -> None:
    state = State([Device(0)], {0: costs_of(0)})
    state.arrived.append(Request(0, 0, 0.0, KV_TOKENS + 1))
    (action, *_) = deadlines.decide(state, 0.0)
    assert isinstance(action, Refuse)
    assert str(KV_TOKENS + 1) in action.why
