"""Turns by deadline: single decisions."""

from __future__ import annotations

from gpupool.schedule.costs import Costs
from gpupool.schedule.deadlines import LOOK_S, TURN_S_MIN, decide
from gpupool.schedule.work import (
    Batch,
    Decode,
    Device,
    Goals,
    Join,
    Prefill,
    Request,
    Rest,
    State,
    Switch,
)

COSTS = Costs((0.01, 2e-5, 0.0), (0.01, 1e-7, 1e-4), 1.0, 1e-5, 1000)


def running(key: int, model: int, *, ahead_s: float, now_s: float = 0.0) -> Request:
    """A request whose next token is due in so many seconds."""
    goals = Goals()
    produced = 50
    arrival_s = now_s + ahead_s - goals.ttft_s - produced * goals.tbt_s
    return Request(key, model, arrival_s, 100, produced, prefilled=True)


def device_with(*batches: Batch, **more: object) -> Device:
    device = Device(0, batches=list(batches), current=batches[0], model=batches[0].model)
    for name, value in more.items():
        setattr(device, name, value)
    return device


def state_of(device: Device, goals_of: dict[int, Goals] | None = None) -> State:
    return State(
        [device],
        dict.fromkeys(range(5), COSTS),
        ready=[device],
        goals_of=goals_of or {},
    )


def test_a_batch_goes_on_while_others_are_ahead() -> None:
    device = device_with(Batch(0, [running(0, 0, ahead_s=1)]), Batch(1, [running(1, 1, ahead_s=9)]))
    (action,) = decide(state_of(device), 0.0)
    assert isinstance(action, Decode)
    assert action.batch.model == 0
    assert action.turn_s is not None
    assert action.turn_s >= TURN_S_MIN
    assert action.then == (1,), "what runs next is fetched meanwhile"


def test_it_leaves_when_another_must_be_loaded_to_be_on_time() -> None:
    later, sooner = (
        device_with(
            Batch(0, [running(0, 0, ahead_s=5)]), Batch(1, [running(1, 1, ahead_s=ahead_s)])
        )
        for ahead_s in (2.0, 1.2)
    )
    assert isinstance(decide(state_of(later), 0.0)[0], Decode)
    (action,) = decide(state_of(sooner), 0.0)
    assert isinstance(action, Switch)
    assert action.batch.model == 1
    warm = device_with(*sooner.batches, resident={1: 1.0})
    assert isinstance(decide(state_of(warm), 0.0)[0], Decode), "there is nothing to load"


def test_loads_that_come_one_after_the_other_are_added_up() -> None:
    batches = [Batch(k, [running(k, k, ahead_s=3.0)]) for k in range(4)]
    assert isinstance(decide(state_of(device_with(*batches)), 0.0)[0], Switch)
    assert isinstance(decide(state_of(device_with(*batches[:2])), 0.0)[0], Decode)


def test_of_those_that_are_late_who_ran_longest_ago_is_next() -> None:
    device = device_with(
        Batch(0, [running(0, 0, ahead_s=5)]),
        Batch(1, [running(1, 1, ahead_s=-9)], ran_s=7.0),
        Batch(2, [running(2, 2, ahead_s=-1)], ran_s=3.0),
    )
    (action,) = decide(state_of(device), 0.0)
    assert isinstance(action, Switch)
    assert action.batch.model == 2


def test_a_turn_that_has_begun_is_not_cut_short() -> None:
    device = device_with(
        Batch(0, [running(0, 0, ahead_s=5)]),
        Batch(1, [running(1, 1, ahead_s=-9)]),
        turn_ends_s=0.4,
    )
    (action,) = decide(state_of(device), 0.0)
    assert isinstance(action, Decode)
    assert action.turn_s is None


def test_a_device_that_switched_begins_the_turn_it_switched_for() -> None:
    device = device_with(
        Batch(0, [running(0, 0, ahead_s=5)]), Batch(1, [running(1, 1, ahead_s=-9)]), committed=True
    )
    (action,) = decide(state_of(device), 0.0)
    assert isinstance(action, Decode)
    assert action.batch.model == 0
    assert action.turn_s is not None


def test_waiting_requests_are_visited_early_if_nobody_is_late_for_it() -> None:
    waiting = Batch(1, [Request(1, 1, 0.0, 100)])
    for ahead_s, visits in ((8.0, True), (1.5, False)):
        device = device_with(Batch(0, [running(0, 0, ahead_s=ahead_s)]), waiting)
        (action,) = decide(state_of(device), 0.0)
        assert isinstance(action, Switch) == visits
        if not visits:
            assert isinstance(action, Decode)
            assert action.turn_s is not None
            assert action.turn_s <= LOOK_S


def test_who_joins_is_prefilled_before_the_batch_goes_on() -> None:
    batch = Batch(0, [running(0, 0, ahead_s=5), Request(1, 0, 0.0, 100), Request(2, 0, 0.0, 900)])
    (action,) = decide(state_of(device_with(batch, turn_ends_s=1.0)), 0.0)
    assert isinstance(action, Prefill)
    assert [request.key for request in action.requests] == [1], "the other has no room yet"


def test_goals_of_one_model() -> None:
    device = device_with(
        Batch(0, [running(0, 0, ahead_s=0.5)]), Batch(1, [Request(1, 1, 0.0, 100)])
    )
    assert isinstance(decide(state_of(device), 0.0)[0], Decode)
    strict = state_of(device, {1: Goals(ttft_s=1.0)})
    assert isinstance(decide(strict, 0.0)[0], Switch)


def test_a_request_goes_where_its_model_is_then_where_there_is_time() -> None:
    busy = Device(0, batches=[Batch(0, [running(0, 0, ahead_s=5)])])
    free, warm = Device(1), Device(2, resident={3: 1.0})
    for model, place in ((0, busy), (1, free), (3, warm)):
        state = State([busy, free, warm], dict.fromkeys(range(5), COSTS))
        state.arrived.append(Request(9, model, 0.0, 10))
        (action, *_) = decide(state, 0.0)
        assert isinstance(action, Join)
        assert action.device is place
        assert (action.batch is None) == (place is not busy)


def test_a_model_has_a_second_device_where_that_is_worth_it() -> None:
    """Not because the first is a little busier; once its room for KV is half full."""
    free = Device(1)
    few, many = ([running(k, 0, ahead_s=5) for k in range(count)] for count in (1, 4))
    own = Device(0, batches=[Batch(0, few)])
    busier = Device(
        0, batches=[Batch(0, few), *(Batch(k, [running(k, k, ahead_s=5)]) for k in range(1, 5))]
    )
    fuller = Device(0, batches=[Batch(0, many)])  # 600 of 1000 tokens
    for first, place in ((own, own), (busier, busier), (fuller, free)):
        state = State([first, free], dict.fromkeys(range(5), COSTS), Goals(tbt_s=0.15))
        state.arrived.append(Request(9, 0, 0.0, 10))
        (action, *_) = decide(state, 0.0)
        assert isinstance(action, Join)
        assert action.device is place


def test_without_work_a_device_rests() -> None:
    device = Device(0)
    assert decide(state_of(device), 0.0) == [Rest(device)]
    assert decide(State([device], {}), 0.0) == []
