"""Who waits for host memory, and whose images are parked in files so that there is some."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gpupool.arbiter import Arbiter
from gpupool.daemon import protocol as p
from gpupool.daemon.workers import Worker
from gpupool.errors import GpupoolError, ProtocolError, RefusedError
from gpupool.host_budget.ledger import HostLedger
from gpupool.host_budget.line import HostLine, Waiter
from gpupool.host_budget.making_room import MakingRoom, ParkOrder
from gpupool.host_budget.place import ParkingPlace
from gpupool.host_images import in_system_pages
from gpupool.schedule.turns import Residency


class Parking:
    """Hands out host memory in order of arrival, and has models park where it runs short."""

    def __init__(
        self,
        ledger: HostLedger,
        arbiter: Arbiter,
        workers: Mapping[int, Worker],
        where: ParkingPlace | None,
        park_timeout_s: float,
    ) -> None:
        """Nobody waits. Nobody is asked to park without a place to; then nobody waits long."""
        self._ledger = ledger
        self._arbiter = arbiter
        self._workers = workers
        self._room = MakingRoom(ledger, arbiter, workers, where, park_timeout_s)
        self._line = HostLine()
        self._revoke: Callable[[ParkOrder, float], None] = lambda *_: None
        self._refuse: Callable[[Worker, GpupoolError], None] = lambda *_: None

    def connect(
        self,
        revoke: Callable[[ParkOrder, float], None],
        refuse: Callable[[Worker, GpupoolError], None],
    ) -> None:
        """``revoke`` has a resident model leave, and park as ordered."""
        self._revoke = revoke
        self._refuse = refuse

    @property
    def folder(self) -> str:
        """Where images are parked; empty if they are not."""
        return self._room.folder

    def said(self, worker: Worker, key: int, message: p.ClientMessage, now_s: float) -> bool:
        """Act on a message about host memory; False if it is about something else.

        Raises RefusedError, or ProtocolError for one out of turn.
        """
        match message:
            case p.HostMemory():
                self._hand_out_now(worker, key, message.size_bytes, now_s)
            case p.HostMemoryUnused():
                self._ledger.returned(key, message.size_bytes)
            case p.HostMemories():
                self._ask(worker, key, message)
            case p.Parkable():
                worker.images.parkable_bytes = message.size_bytes
            case p.Parked():
                self._parked(worker, key, message, now_s)
            case p.Unparked():
                self._unparked(worker, message)
            case p.Cancel():
                return self._cancel(worker, key)
            case _:
                return False
        return True

    def hurry(self, key: int) -> None:
        """What a model asked for ahead it waits for now."""
        self._line.hurry(key)

    def settle(self, now_s: float) -> float | None:
        """Hand out what there is, and ask for more; when to call again at the latest."""
        self._line.keep(self._room.is_here)
        while (first := self._line.first) is not None:
            worker = self._workers[first.key]
            try:
                if (asked := self._room.for_first(first, now_s, self._line.keys)) is not None:
                    self._tell(asked.orders, now_s)
                    return asked.wake_at_s
                self._hand_out(worker, first)
            except GpupoolError as error:
                self._refuse(worker, error)
            self._line.leave(first.key)
        return None

    def _ask(self, worker: Worker, key: int, message: p.HostMemories) -> None:
        if self._line.has(key):
            raise ProtocolError("a worker that waits for host memory asks for more")
        waiter = Waiter(key, message.sizes_bytes, message.ahead, message.returns)
        if 0 in waiter.sizes_bytes:
            raise RefusedError("host memory has at least one byte")
        if self._arbiter.lease(key).state in (Residency.RESIDENT, Residency.LEAVING):
            self._hand_out(worker, waiter)  # others may wait for its pages
            return
        self._line.add(waiter)

    def _hand_out_now(self, worker: Worker, key: int, size_bytes: int, now_s: float) -> None:
        """To one that must not wait, as it may have pages; others are asked for the next time."""
        missing_bytes = in_system_pages(size_bytes) - self._ledger.free_bytes
        try:
            fd = self._ledger.hand_out(key, size_bytes)
        except RefusedError:
            self._tell(self._room.for_next_time(missing_bytes, key, now_s), now_s)
            raise
        worker.peer.say(p.HostMemory(size_bytes), [fd])

    def _hand_out(self, worker: Worker, waiter: Waiter) -> None:
        fds = self._ledger.hand_out_all(waiter.key, waiter.sizes_bytes)
        worker.images.granted(waiter.total_bytes, returns=waiter.returns)
        worker.peer.say(p.HostGranted(self._room.has_room_for_all_files()), fds)

    def _tell(self, orders: list[ParkOrder], now_s: float) -> None:
        for order in orders:
            if order.leaves:
                self._revoke(order, now_s)
            else:
                self._workers[order.key].peer.say(p.Park(order.deadline_s, order.file_bytes))

    def _parked(self, worker: Worker, key: int, message: p.Parked, now_s: float) -> None:
        if worker.images.asked_until_s is None:
            raise ProtocolError("a worker parks when it is asked to")
        sizes, why = (message.size_bytes, message.file_bytes), p.one_line(message.why)
        self._room.parked(key, *sizes, now_s, why, passes=message.passes)

    @staticmethod
    def _unparked(worker: Worker, message: p.Unparked) -> None:
        if not worker.images.returning:
            raise ProtocolError("images come back once after host memory was asked for them")
        worker.images.unparked(message.size_bytes, message.file_bytes, message.read_s)

    def _cancel(self, worker: Worker, key: int) -> bool:
        if self._line.leave(key) is None:
            return False
        worker.peer.say(p.Ok())
        return True
