"""Who waits for host memory, and whose images are parked in files so that there is some."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from gpupool.arbiter import Arbiter
from gpupool.daemon import protocol as p
from gpupool.daemon.host_ledger import HostLedger
from gpupool.daemon.host_line import HostLine, Waiter
from gpupool.daemon.parking_place import ParkingPlace
from gpupool.daemon.workers import Worker
from gpupool.errors import GpupoolError, ProtocolError, RefusedError
from gpupool.host_images import in_system_pages
from gpupool.schedule.parking import ImagesView, whom_to_park
from gpupool.schedule.turns import Residency

_AGAIN_S = 1.0  # until a model that was in use is asked again
_FAILED_S = 10.0  # and one that could not park
_BYTES_A_SECOND = 50 << 20  # that a disk is taken to write at least


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
        self._where = where
        self._timeout_s = park_timeout_s
        self._line = HostLine()
        self._revoke: Callable[[int, float, float], None] = lambda *_: None
        self._refuse: Callable[[Worker, GpupoolError], None] = lambda *_: None

    def connect(
        self,
        revoke: Callable[[int, float, float], None],
        refuse: Callable[[Worker, GpupoolError], None],
    ) -> None:
        """``revoke`` has a resident model leave, and park within so many seconds."""
        self._revoke = revoke
        self._refuse = refuse

    @property
    def folder(self) -> str:
        """Where images are parked; empty if they are not."""
        return "" if self._where is None else str(self._where.folder)

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
        self._line.keep(self._is_here)
        while (first := self._line.first) is not None:
            worker = self._workers[first.key]
            missing_bytes = first.total_bytes - self._ledger.free_bytes
            try:
                if missing_bytes > 0:
                    return self._make_room(first, missing_bytes, now_s)
                self._hand_out(worker, first)
            except GpupoolError as error:
                worker.images.returning = False
                self._refuse(worker, error)
            self._line.leave(first.key)
        return None

    def _ask(self, worker: Worker, key: int, message: p.HostMemories) -> None:
        if self._line.has(key):
            raise ProtocolError("a worker that waits for host memory asks for more")
        waiter = Waiter(key, message.sizes_bytes, message.ahead)
        if 0 in waiter.sizes_bytes:
            raise RefusedError("host memory has at least one byte")
        worker.images.returning = message.returns
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
            if missing_bytes > 0 and self._where is not None:
                self._wish(missing_bytes - self._coming_bytes(now_s), key, now_s, out_only=True)
            raise
        worker.peer.say(p.HostMemory(size_bytes), [fd])

    def _hand_out(self, worker: Worker, waiter: Waiter) -> None:
        if waiter.total_bytes > self._ledger.free_bytes:
            raise self._ledger.refusal(waiter.total_bytes)
        fds: list[int] = []
        try:
            for size_bytes in waiter.sizes_bytes:
                fds.append(self._ledger.hand_out(waiter.key, size_bytes))
        except RefusedError:
            for fd, size_bytes in zip(fds, waiter.sizes_bytes, strict=False):
                os.close(fd)
                self._ledger.returned(waiter.key, size_bytes)
            raise
        worker.peer.say(p.HostGranted(self._has_room_for_all_files()), fds)

    def _make_room(self, first: Waiter, missing_bytes: int, now_s: float) -> float | None:
        if self._where is None or first.total_bytes > self._ledger.budget_bytes:
            raise self._ledger.refusal(first.total_bytes)
        missing_bytes -= self._coming_bytes(now_s)
        if missing_bytes > 0:
            idle_only = first.ahead
            return self._wish(missing_bytes, first.key, now_s, idle_only=idle_only, waiter=first)
        return min((until_s for until_s in self._due_s() if until_s > now_s), default=None)

    def _wish(
        self,
        missing_bytes: int,
        besides: int,
        now_s: float,
        *,
        idle_only: bool = False,
        out_only: bool = False,
        waiter: Waiter | None = None,
    ) -> float | None:
        views = tuple(
            self._view(key, worker, now_s)
            for key, worker in self._workers.items()
            if key != besides and self._has_images(key, worker)
        )
        room_bytes = self._file_room_bytes()
        wishes = whom_to_park(
            views,
            missing_bytes,
            room_bytes,
            now_s,
            self._arbiter.turn_s,
            idle_only=idle_only,
            out_only=out_only,
        )
        if not wishes.possible and waiter is not None:
            raise self._ledger.refusal(waiter.total_bytes, self._why(views))
        for wish in wishes.asked:
            self._park(wish.key, now_s, leaves=wish.leaves)
        ends_s = [end_s for end_s in (wishes.wake_at_s, *self._due_s()) if end_s is not None]
        return min((end_s for end_s in ends_s if end_s > now_s), default=None)

    def _park(self, key: int, now_s: float, *, leaves: bool) -> None:
        images = self._workers[key].images
        deadline_s = self._timeout_s + images.parkable_bytes / _BYTES_A_SECOND
        images.asked_until_s = now_s + deadline_s + self._timeout_s
        if leaves:
            self._revoke(key, now_s, deadline_s)
        else:
            self._workers[key].peer.say(p.Park(deadline_s))

    def _parked(self, worker: Worker, key: int, message: p.Parked, now_s: float) -> None:
        images = worker.images
        if images.asked_until_s is None:
            raise ProtocolError("a worker parks when it is asked to")
        images.asked_until_s = None
        images.file_bytes = message.file_bytes
        if message.size_bytes > 0:
            images.parked_bytes, images.why = message.size_bytes, ""
            images.parks += 1
            return
        images.why = p.one_line(message.why)
        if images.why:
            images.not_before_s = now_s + _FAILED_S
        elif self._arbiter.lease(key).state is Residency.OUT:  # else it crossed an Acquire
            images.not_before_s = now_s + _AGAIN_S

    @staticmethod
    def _unparked(worker: Worker, message: p.Unparked) -> None:
        images = worker.images
        if not images.returning:
            raise ProtocolError("images come back once after host memory was asked for them")
        images.returning = False
        images.file_bytes = message.file_bytes
        if message.size_bytes > 0:
            images.parked_bytes = 0
            images.read_backs += 1
            images.read_back_bytes += message.size_bytes
            images.read_back_s += message.read_s

    def _cancel(self, worker: Worker, key: int) -> bool:
        if not self._line.leave(key):
            return False
        worker.images.returning = False
        worker.peer.say(p.Ok())
        return True

    def _is_here(self, key: int) -> bool:
        worker = self._workers.get(key)
        return worker is not None and not worker.peer.lost

    def _has_images(self, key: int, worker: Worker) -> bool:
        images = worker.images
        if images.parkable_bytes == 0 or images.asked_until_s is not None:
            return False
        return self._is_here(key) and (images.returning or images.parked_bytes == 0)

    def _view(self, key: int, worker: Worker, now_s: float) -> ImagesView:
        lease, images = self._arbiter.lease(key), worker.images
        return ImagesView(
            key,
            min(images.parkable_bytes, self._ledger.held_bytes(key)),
            max(0, images.parkable_bytes - images.file_bytes),
            lease.state,
            lease.since_s,
            lease.used_s,
            lease.idle,
            max(images.not_before_s, lease.stays_until_s),
            comes=images.returning,
            never=bool(images.why) and images.not_before_s > now_s,
        )

    def _coming_bytes(self, now_s: float) -> int:
        """Of those who were asked and may answer yet, and of processes that are about to end."""
        coming = 0
        for key, worker in self._workers.items():
            held_bytes = self._ledger.held_bytes(key)
            if worker.peer.lost:
                coming += held_bytes if (worker.ends_until_s or 0.0) > now_s else 0
            elif (worker.images.asked_until_s or 0.0) > now_s:
                coming += min(worker.images.parkable_bytes, held_bytes)
        return coming

    def _due_s(self) -> list[float]:
        due_s: list[float | None] = []
        for worker in self._workers.values():
            due_s += [worker.images.asked_until_s, worker.ends_until_s]
        return [until_s for until_s in due_s if until_s is not None]

    def _file_room_bytes(self) -> int:
        limit_bytes = None if self._where is None else self._where.limit_bytes
        if limit_bytes is None:
            return 1 << 62
        of = [worker.images for worker in self._workers.values()]
        # Who was asked may take what its images have.
        taken = [
            images.file_bytes
            if images.asked_until_s is None
            else max(images.file_bytes, images.parkable_bytes)
            for images in of
        ]
        return limit_bytes - sum(taken)

    def _has_room_for_all_files(self) -> bool:
        if self._where is None or self._where.limit_bytes is None:
            return self._where is not None
        every = sum(worker.images.parkable_bytes for worker in self._workers.values())
        return every <= self._where.limit_bytes

    def _why(self, views: tuple[ImagesView, ...]) -> str:
        said = [self._workers[view.key].images.why for view in views if view.never]
        why = f" ({said[0]})" if said else ""
        return f", and no other model can park its images in {self.folder}{why}"
