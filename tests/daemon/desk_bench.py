"""A desk whose peers, clock and driver failures are the test's."""

from __future__ import annotations

import os
from typing import Any, cast

import msgspec

from gpupool._core import FaultPlan, PagePool, open_host_driver, with_faults
from gpupool.arbiter import Arbiter
from gpupool.daemon import protocol as p
from gpupool.daemon import wire
from gpupool.daemon.desk import Desk
from gpupool.daemon.live_policy import TURNS, LivePolicy
from gpupool.daemon.peers import Peer
from gpupool.host_budget.place import ParkingPlace

PAGE_BYTES = 2 << 20
PAGES = 4
REVOKE_S = 30.0
OUT_OF_MEMORY = 2
SWAP = p.SwapFigures(0.5, 0.25, 100)


class FakePeer:
    """A process and its connection; whatever it is told is kept."""

    def __init__(self, pid: int = 1) -> None:
        self.pid = pid
        self.key: int | None = None
        self.connected = True
        self.lost = False
        self.exited = False
        self.kills = 0
        self.heard: list[msgspec.Struct] = []

    def say(self, message: msgspec.Struct, fds: list[int] | None = None) -> None:
        for fd in fds or []:
            os.close(fd)
        self.heard.append(wire.decode_daemon(wire.encode(message)))

    def kill(self) -> None:
        self.kills += 1

    def take(self) -> list[msgspec.Struct]:
        heard, self.heard = self.heard, []
        return heard


class Bench:
    """A desk with a clock."""

    def __init__(
        self,
        *,
        pages: int = PAGES,
        turn_s: float = 0.0,
        host_budget_bytes: int = 1 << 20,
        parking: ParkingPlace | None = None,
        policy: LivePolicy = TURNS,
    ) -> None:
        self.faults = FaultPlan()
        driver = with_faults(open_host_driver(), self.faults)
        self.pages = PagePool(driver, pages * PAGE_BYTES, PAGE_BYTES)
        self.arbiter = Arbiter(self.pages, turn_s)
        self.conducting = policy.over(self.arbiter, REVOKE_S)
        self.desk = Desk(
            pages=self.pages,
            arbiter=self.arbiter,
            device="host",
            version="1",
            host_budget_bytes=host_budget_bytes,
            parking=parking,
            conducting=self.conducting,
            min_tokens=8,
            revoke_timeout_s=REVOKE_S,
        )
        self.now_s = 0.0
        self.wake_at_s: float | None = None

    def tell(self, peer: FakePeer, *messages: p.ClientMessage) -> list[Any]:
        """Hand messages over, settling after each, and what the peer has heard since."""
        self.say(peer, *messages)
        return peer.take()

    def say(self, peer: FakePeer, *messages: p.ClientMessage) -> None:
        for message in messages:
            if not self.desk.handle(cast(Peer, peer), message, self.now_s):
                self.lose(peer)
            self.settle()

    def settle(self) -> None:
        self.wake_at_s = self.desk.settle(self.now_s)

    def lose(self, peer: FakePeer) -> bool:
        if not self.desk.holds_pages(cast(Peer, peer)):
            peer.connected = False
        forgotten = self.desk.lost(cast(Peer, peer), self.now_s)
        self.settle()
        return forgotten

    def status(self) -> p.Status:
        peer = FakePeer()
        models: list[p.ModelStatus] = []
        after = 0
        while True:
            self.desk.handle(cast(Peer, peer), p.StatusQuery(after), self.now_s)
            (reply,) = cast(list[p.StatusReply], peer.take())
            models += reply.status.models
            after = reply.next_after
            if not after:
                return msgspec.structs.replace(reply.status, models=models)

    def key_of(self, name: str) -> int:
        return next(lease.key for lease in self.arbiter.leases() if lease.name == name)

    def worker(self, name: str, pages: int, warmable: int = 0) -> FakePeer:
        peer = FakePeer()
        self.tell(peer, p.Hello(p.PROTOCOL_VERSION, name), p.Declare(pages, 0, 0, warmable))
        return peer

    def ledger(self) -> tuple[int, int, int]:
        status = self.status()
        return status.pages_free, status.pages_granted, status.pages_fenced
