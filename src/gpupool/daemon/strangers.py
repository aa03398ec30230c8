"""What any client of the same user may say without a Hello."""

from __future__ import annotations

from collections.abc import Mapping

from gpupool.daemon import protocol as p
from gpupool.daemon.account import Account
from gpupool.daemon.conducting import Conducting
from gpupool.daemon.peers import Peer
from gpupool.daemon.workers import Worker


class Strangers:
    """Questions about the pool, wishes, and news of requests."""

    def __init__(
        self, account: Account, conducting: Conducting, workers: Mapping[int, Worker]
    ) -> None:
        """Nobody has asked yet."""
        self._account = account
        self._conducting = conducting
        self._workers = workers

    def said(self, peer: Peer, message: p.ClientMessage, now_s: float) -> bool:
        """Act on it, or answer; False if it is nothing that a stranger may say."""
        match message:
            case p.StatusQuery(after):
                peer.say(self._account.status(self._workers, after))
            case p.Prefetch():
                peer.say(self._prefetch(message))
            case p.WhyQuery():
                peer.say(self._conducting.why(now_s))
            case p.Announce() | p.Over():
                self._conducting.told(peer, message, now_s)
            case _:
                return False
        return True

    def _prefetch(self, message: p.Prefetch) -> p.Ok | p.Refused:
        for worker in self._workers.values():
            if worker.name == message.model and not worker.peer.lost:
                worker.peer.say(p.FetchAhead(message.share))
                return p.Ok()
        return p.Refused("refused", f"no model named {p.one_line(message.model)!r} is in the pool")
