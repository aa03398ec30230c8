"""Engines with requests, in simulated time, at a desk with a policy of requests."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from desk_bench import SWAP, Bench, FakePeer

from gpupool.daemon import protocol as p
from gpupool.daemon.live_policy import LivePolicy
from gpupool.daemon.peers import Peer
from gpupool.live import Conductor
from gpupool.schedule.recording import Decided
from gpupool.schedule.work import Goals

STEP_S = 0.03
SWAP_S = 0.2


@dataclass(eq=False)
class Asked:
    """A request as its sender knows it."""

    name: str
    model: str
    at_s: float
    tokens: int
    announced: bool = True
    made: int = 0
    first_s: float = -1.0
    done_s: float = -1.0
    given_up_s: float = -1.0


@dataclass(eq=False)
class FakeEngine:
    """One that runs all of its requests in each step, as long as it has its memory."""

    name: str
    peer: FakePeer
    requests: list[Asked] = field(default_factory=list)
    known: dict[Asked, int] = field(default_factory=dict)
    count: int = 0
    state: str = "out"
    revoked: bool = False
    tells: bool = True
    """Of its requests."""


class Live:
    """A desk, its engines, a router, and a clock that goes from event to event."""

    def __init__(
        self,
        pages: int,
        models: dict[str, int],
        policy: str,
        goals: Goals,
        patience_s: float | None = None,
    ) -> None:
        """``models`` says how many pages each needs."""
        self.decided: list[Decided] = []
        self._made = pages, models, goals
        live = LivePolicy(policy, goals, patience_s, self.decided.append)
        self.bench = Bench(pages=pages, turn_s=0.2, policy=live)
        self.engines = {
            name: FakeEngine(name, self.bench.worker(name, needs)) for name, needs in models.items()
        }
        self.router = FakePeer()
        self.asked: dict[str, Asked] = {}
        self.swap_ins: list[str] = []
        self.revokes = 0
        """Of engines with requests."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    @property
    def conductor(self) -> Conductor:
        found = self.bench.conducting.conductor
        assert found is not None
        return found

    def with_policy(self, policy: str) -> Live:
        """The same with another, from the start."""
        pages, models, goals = self._made
        return Live(pages, models, policy, goals)

    def why(self) -> p.Why:
        peer = FakePeer()
        (found,) = self.bench.tell(peer, p.WhyQuery())
        assert isinstance(found, p.Why)
        return found

    def die(self, model: str, at_s: float) -> None:
        """Kill an engine, and whoever put requests to it learns so."""
        self.at(at_s, partial(self._die, self.engines[model]))

    def lose_router(self, at_s: float) -> None:
        """Its connection ends, and nobody announces anything any more."""
        self.at(at_s, self._lose_router)

    def at(self, at_s: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_s, self._count, do))

    def ask(self, asked: Asked) -> None:
        self.asked[asked.name] = asked
        self.at(asked.at_s, partial(self._come, asked))

    def run(self, until_s: float) -> None:
        """Until nothing is left to happen, or so long."""
        while self._events or self.bench.wake_at_s is not None:
            wake_s = self.bench.wake_at_s
            next_s = self._events[0][0] if self._events else float("inf")
            if wake_s is not None and wake_s < next_s:
                self.bench.now_s = max(self.bench.now_s, wake_s)
                self.bench.settle()
                wake_s = self.bench.wake_at_s
                assert wake_s is None or wake_s > self.bench.now_s, "it looks again for ever"
            else:
                at_s, _, do = heapq.heappop(self._events)
                self.bench.now_s = max(self.bench.now_s, at_s)
                do()
            self._hear()
            if self.bench.now_s > until_s:
                return

    def _say(self, peer: FakePeer, *messages: p.ClientMessage) -> None:
        for message in messages:
            assert self.bench.desk.handle(cast(Peer, peer), message, self.bench.now_s)
            self.bench.settle()

    def _die(self, engine: FakeEngine) -> None:
        engine.state, engine.peer.exited, engine.peer.connected = "dead", True, False
        self.bench.lose(engine.peer)
        for asked in engine.requests:
            self._over(asked)

    def _lose_router(self) -> None:
        self.bench.lose(self.router)

    def _over(self, asked: Asked) -> None:
        if asked.announced and not self.router.lost:
            self._say(self.router, p.Over(asked.name))

    def _come(self, asked: Asked) -> None:
        engine = self.engines[asked.model]
        if engine.state == "dead":
            return
        if asked.announced and not self.router.lost:
            self._say(self.router, p.Announce(asked.model, asked.name, 10))
        engine.requests.append(asked)
        if engine.state == "out":
            self.at(self.bench.now_s + 0.001, partial(self._acquire, engine))

    def _acquire(self, engine: FakeEngine) -> None:
        if engine.state == "out":
            engine.state = "waiting"
            self._say(engine.peer, p.Idle(False), p.Acquire())

    def _arrive(self, engine: FakeEngine) -> None:
        if engine.state == "dead":
            return
        engine.state = "resident"
        self.swap_ins.append(engine.name)
        self._say(engine.peer, p.Arrived(SWAP))
        self._step(engine)

    def _step(self, engine: FakeEngine) -> None:
        began = []
        for asked in engine.requests:
            if asked not in engine.known:
                engine.count += 1
                engine.known[asked] = engine.count
                began.append((engine.count, f"cmpl-{asked.name}-0-1234abcd", 10))
        if began and engine.tells:
            self._say(engine.peer, p.Working(began))
        self.at(self.bench.now_s + STEP_S, partial(self._stepped, engine))

    def _stepped(self, engine: FakeEngine) -> None:
        if engine.state == "dead":
            return
        now_s = self.bench.now_s
        for asked in engine.known:
            asked.made += 1
            asked.first_s = now_s if asked.first_s < 0 else asked.first_s
        done = [asked for asked in engine.known if asked.made >= asked.tokens]
        produced = [(number, asked.made) for asked, number in engine.known.items()]
        ended = [engine.known.pop(asked) for asked in done]
        if engine.tells:
            self._say(engine.peer, p.Working([], produced, ended, 1, STEP_S))
        for asked in done:
            asked.done_s = now_s
            engine.requests.remove(asked)
            self._over(asked)
        if not engine.requests:
            self._say(engine.peer, p.Idle(True))
            engine.state = "idle"
        if engine.revoked:
            self._leave(engine)
        elif engine.state == "resident":
            self._step(engine)

    def _leave(self, engine: FakeEngine) -> None:
        engine.revoked, engine.state = False, "out"
        self._say(engine.peer, p.Yielded(SWAP))
        if engine.requests:
            self.at(self.bench.now_s + 0.001, partial(self._acquire, engine))

    def _take_back(self, asked: Asked) -> None:
        """As a router does that was told to give up: an engine without a turn knows nothing yet."""
        asked.given_up_s = self.bench.now_s
        self.engines[asked.model].requests.remove(asked)
        self.engines[asked.model].known.pop(asked, None)
        self._over(asked)

    def _hear(self) -> None:
        for message in self.router.take():
            assert isinstance(message, p.GiveUp)
            self._take_back(self.asked[message.request_id])
        for engine in self.engines.values():
            if engine.state == "dead":
                continue
            for message in engine.peer.take():
                if isinstance(message, p.Granted) and message.last:
                    engine.state = "arriving"
                    self.at(self.bench.now_s + SWAP_S, partial(self._arrive, engine))
                elif isinstance(message, p.Revoke):
                    engine.revoked = True
                    self.revokes += engine.state != "idle"
                    if engine.state == "idle":
                        self.at(self.bench.now_s, partial(self._leave_idle, engine))
            if engine.state == "idle" and engine.requests:
                engine.state = "resident"
                self._say(engine.peer, p.Idle(False))
                self._step(engine)

    def _leave_idle(self, engine: FakeEngine) -> None:
        if engine.state == "idle" and engine.revoked:
            self._leave(engine)
