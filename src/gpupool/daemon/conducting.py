"""The policy of requests at the desk: what is told of requests, and whose turn it is then."""

from __future__ import annotations

from typing import cast

from gpupool.arbiter.leases import Lease
from gpupool.daemon import protocol as p
from gpupool.daemon.peers import Peer
from gpupool.daemon.workers import Worker
from gpupool.errors import ProtocolError
from gpupool.live import Conductor
from gpupool.schedule.work import Request


class Conducting:
    """Tells a conductor what peers say. Without one, turns are all there is."""

    def __init__(self, policy: str) -> None:
        """There is no conductor yet."""
        self.conductor: Conductor | None = None
        self._policy = policy

    @property
    def follows_requests(self) -> bool:
        """Whether it is of any use to tell of requests."""
        return self.conductor is not None

    def told(self, peer: Peer, message: p.Announce | p.Over, now_s: float) -> None:
        """Requests are on their way, or over."""
        if self.conductor is None:
            return
        requests = self.conductor.requests
        if isinstance(message, p.Over):
            requests.over(peer, message.request_id)
        else:
            requests.announce(peer, message.model, message.request_id, message.prompt_tokens, now_s)

    def said(self, worker: Worker, key: int, message: p.ClientMessage, now_s: float) -> bool:
        """Act on what a worker says of its requests; False if it is something else."""
        if not isinstance(message, p.Working | p.WorkGoals):
            return False
        if self.conductor is None:
            return True
        if isinstance(message, p.WorkGoals):
            given = message.ttft_s, message.tbt_s, message.weight
            self.conductor.set_goals(key, *given)
            return True
        numbers = [number for number, *_ in message.began]
        if len(set(numbers)) < len(numbers):
            raise ProtocolError("a worker gives each request a number of its own")
        self.conductor.tells(key, now_s)
        requests = self.conductor.requests
        for number, request_id, prompt_tokens in message.began:
            requests.began(worker.name, number, request_id, prompt_tokens, now_s)
        requests.produced(worker.name, message.produced)
        requests.ended(worker.name, message.ended)
        self.conductor.measured.stepped(key, message.steps, message.steps_s)
        self.conductor.measured.prefilled(key, message.prefilled_tokens, message.prefills_s)
        return True

    def joined(self, key: int, name: str) -> None:
        """A worker has joined."""
        if self.conductor is not None:
            self.conductor.add(key, name)

    def left(self, key: int) -> None:
        """A worker is forgotten."""
        if self.conductor is not None:
            self.conductor.forget(key)

    def lost(self, peer: Peer) -> None:
        """A peer has gone, and with it what it announced."""
        if self.conductor is not None:
            self.conductor.requests.forget_teller(peer)

    def arrived(
        self, key: int, swap: p.SwapFigures, lease: Lease, page_bytes: int, now_s: float
    ) -> None:
        """A model has come in."""
        if self.conductor is not None:
            copied = swap.copied_bytes / (lease.pages * page_bytes)
            self.conductor.measured.swapped(key, swap.total_s, copied)
            self.conductor.arrived(key, now_s)

    def give_up(self, model: str, request: Request) -> None:
        """Whoever announced a request is told that it has waited for too long."""
        assert self.conductor is not None
        found = self.conductor.requests.announced_as(request, model)
        if found is not None:
            peer, request_id = found
            cast(Peer, peer).say(p.GiveUp(request_id))

    def settle(self, now_s: float) -> float | None:
        """Have the policy look at it all; when to look again at the latest."""
        return None if self.conductor is None else self.conductor.look(now_s)

    def why(self, now_s: float) -> p.Why:
        """What was decided last."""
        told = [] if self.conductor is None else self.conductor.why(now_s)
        return p.Why(self._policy, [(ago_s, p.one_line(text)) for ago_s, text in told])
