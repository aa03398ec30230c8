"""Memory that workers found not to be what was saved, and who else has it."""

from __future__ import annotations

from collections.abc import Mapping

from gpupool.arbiter import Arbiter
from gpupool.arbiter.distrust import why_to_leave
from gpupool.daemon import protocol as p
from gpupool.daemon.account import Account
from gpupool.daemon.workers import Worker


class Damage:
    """Counts it, notes it, and has the others that have such pages leave them."""

    def __init__(
        self,
        arbiter: Arbiter,
        workers: Mapping[int, Worker],
        account: Account,
        revoke_timeout_s: float,
    ) -> None:
        """Who is to leave does so in that time, or is killed."""
        self._arbiter = arbiter
        self._workers = workers
        self._account = account
        self._revoke_timeout_s = revoke_timeout_s

    def said(self, worker: Worker, key: int, message: p.ClientMessage, now_s: float) -> bool:
        """Act on a message about damage; False if it is about something else.

        Raises UsageError for pages that the worker does not hold.
        """
        match message:
            case p.WrongPages():
                for other in self._arbiter.distrust(key, message.pages):
                    self._distrust(other, worker.name, now_s)
            case p.Damaged():
                self._count(worker, message.message)
            case _:
                return False
        return True

    def _distrust(self, key: int, finder: str, now_s: float) -> None:
        worker = self._workers[key]
        why = why_to_leave(worker.name, finder)
        self._count(worker, why)
        if self._arbiter.must_leave(key):
            self._arbiter.revoke(key, now_s)
            worker.revoke(self._revoke_timeout_s, now_s, distrusted=p.one_line(why))

    def _count(self, worker: Worker, message: str) -> None:
        worker.damaged += 1
        self._account.note(worker.name, worker.peer.pid, message)
