"""Rounds and prefill groups of the paper: single decisions."""

from __future__ import annotations

from gpupool.schedule.aegaeon import GROUP_MAX, decide
from gpupool.schedule.costs import Costs
from gpupool.schedule.work import (
    Action,
    Batch,
    Decode,
    Device,
    Join,
    Prefill,
    Request,
    Round,
    State,
    Switch,
    Turn,
)

COSTS = Costs((0.1, 1e-3, 0.0), (0.01, 1e-7, 1e-4), 2.0, 1e-5, 1000)


def waiting(model: int, tokens: int = 10) -> Request:
    return Request(0, model, 0.0, tokens)


def decoding(model: int, tokens: int = 10) -> Batch:
    return Batch(model, [Request(0, model, 0.0, tokens, 5, prefilled=True)])


def group(model: int, count: int, tokens: int = 10) -> Batch:
    return Batch(model, [waiting(model, tokens) for _ in range(count)], taken=count)


def decided(state: State) -> Action:
    first, *_ = decide(state, 0.0)
    return first


def place(request: Request, *devices: Device, prefilled: bool = False) -> Join:
    state = State(list(devices), dict.fromkeys(range(5), COSTS))
    (state.prefilled if prefilled else state.arrived).append(request)
    action = decided(state)
    assert isinstance(action, Join)
    return action


def test_a_group_takes_so_many_in_all() -> None:
    device = Device(0, groups=[group(0, GROUP_MAX - 1)])
    assert place(waiting(0), device).batch is device.groups[0]
    device.groups[0].taken = GROUP_MAX  # also of those that are prefilled by now
    assert place(waiting(0), device).batch is None


def test_a_group_takes_no_more_than_has_room() -> None:
    device = Device(0, groups=[group(0, 2, tokens=300)])
    assert place(waiting(0, 400), device).batch is device.groups[0]
    assert place(waiting(0, 401), device).batch is None


def test_a_new_group_goes_where_prefills_and_switches_take_least() -> None:
    long = Device(0, groups=[group(0, 1, tokens=900)], model=0)  # 1 s
    loads = Device(1, groups=[group(1, 1)], model=2)  # 0.11 s and a switch of 2 s
    has_it = Device(2, groups=[group(1, 5)], model=1)  # 0.55 s
    assert place(waiting(3), long, loads, has_it).device is has_it
    assert place(waiting(3), long, loads).device is long


def test_a_decoding_batch_takes_no_more_than_has_room() -> None:
    device = Device(0, batches=[decoding(0, 595)])
    for tokens, joins in ((400, True), (401, False)):
        request = Request(1, 0, 0.0, tokens, prefilled=True)
        joined = place(request, device, prefilled=True).batch
        assert (joined is device.batches[0]) == joins


def test_the_next_model_is_fetched_while_a_turn_lasts() -> None:
    first, second = decoding(0), decoding(1)
    device = Device(0, batches=[first, second], turns=(Turn(first, 1.0), Turn(second, 1.0)))
    state = State([device], dict.fromkeys(range(5), COSTS), ready=[device])
    assert decided(state) == Switch(device, first, (1,))
    device.model, device.current = 0, first
    assert decided(state) == Decode(device, first, 1.0, (1,))
    device.turns, device.turn_ends_s = device.turns[1:], 1.0
    assert decided(state) == Decode(device, first, None, (1,)), "and as it goes on"
    device.model, device.current, device.turns = 1, second, ()
    assert decided(state) == Decode(device, second, None, (0,)), "of the next round, in the last"


def test_the_next_model_is_fetched_while_a_group_is_prefilled() -> None:
    device = Device(0, groups=[group(0, 2), group(0, 1), group(3, 1)], model=0, decodes=False)
    state = State([device], dict.fromkeys(range(5), COSTS), ready=[device])
    action = decided(state)
    assert isinstance(action, Prefill)
    assert action.then == (3,) and len(action.requests) == 1


def test_batches_of_one_model_have_their_turns_one_after_the_other() -> None:
    batches = [decoding(model) for model in (0, 1, 0, 2, 1)]
    device = Device(0, batches=batches)
    action = decided(State([device], dict.fromkeys(range(5), COSTS), ready=[device]))
    assert isinstance(action, Round)
    assert [turn.batch.model for turn in action.turns] == [0, 0, 1, 1, 2]
