"""Requests served by a policy whose every action is looked at, in simulated time."""

from __future__ import annotations

from collections.abc import Callable

from gpupool.schedule import aegaeon, deadlines, fcfs
from gpupool.schedule.costs import Costs
from gpupool.schedule.work import (
    Action,
    Decode,
    Device,
    Goals,
    Join,
    Prefill,
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


def costs_of(model: int, fixed_s: float = 0.0, slow: float = 1.0) -> Costs:
    """Larger models are slower; ``slow``: so many times slower than that."""
    size = 1 + model % 3
    return Costs(
        (0.01 * size, 2e-5, 0.0),
        (0.008 * size * slow, 1e-7, 5e-5),
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
                there = {*(r for r in batch.requests if r.prefilled), *requests}
                held = sum(r.context_tokens for r in there)
                assert held <= KV_TOKENS or len(there) == 1, "no room for their KV"
                assert device.prefills
            case Decode(device, batch, turn_s, _):
                self.is_free(state, device)
                assert device.model == batch.model, "it runs without its weights"
                running = batch.fitting(KV_TOKENS)
                held = sum(r.context_tokens + 1 for r in running)
                assert running and (held <= KV_TOKENS or len(running) == 1), "no room for their KV"
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
    slow: float = 1.0,
) -> tuple[Engine, ResidentLoader, list[Request]]:
    ordered = sorted(arrivals)
    requests = [Request(k, model, at_s, n) for k, (at_s, model, n, _) in enumerate(ordered)]
    costs = {model: costs_of(model, fixed_s or 0.0, slow) for model in range(6)}
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
