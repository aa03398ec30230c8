"""What the daemon answers: messages in, messages and leases out. No event loop of its own."""

from __future__ import annotations

from gpupool._core import PagePool
from gpupool.arbiter import Arbiter
from gpupool.arbiter.leases import Granted
from gpupool.daemon import protocol as p
from gpupool.daemon.account import Account
from gpupool.daemon.conducting import Conducting
from gpupool.daemon.damage import Damage
from gpupool.daemon.extensions import Extensions
from gpupool.daemon.giving_way import GivingWay
from gpupool.daemon.hand_out import export, send_pages
from gpupool.daemon.image_desk import ImageDesk, forget
from gpupool.daemon.parking import Parking
from gpupool.daemon.peers import Peer
from gpupool.daemon.strangers import Strangers
from gpupool.daemon.workers import Worker
from gpupool.errors import DriverError, GpupoolError, ProtocolError, RefusedError
from gpupool.host_budget.ledger import HostLedger
from gpupool.host_budget.making_room import ParkOrder
from gpupool.host_budget.place import ParkingPlace
from gpupool.schedule.turns import Cool

_ASKS = p.HostMemory | p.HostMemories | p.Declare | p.Acquire | p.Extend | p.ShareImage


class Desk:
    """Connects peers, the arbiter and the ledger of host memory."""

    def __init__(
        self,
        *,
        pages: PagePool,
        arbiter: Arbiter,
        device: str,
        version: str,
        host_budget_bytes: int,
        parking: ParkingPlace | None = None,
        conducting: Conducting,
        min_tokens: int,
        revoke_timeout_s: float,
    ) -> None:
        """Start with no peers."""
        self._pages = pages
        self._arbiter = arbiter
        self._device = device
        self._host = HostLedger(host_budget_bytes)
        self._images = ImageDesk(self._host, pages.page_bytes)
        self._min_tokens = min_tokens
        self._revoke_timeout_s = revoke_timeout_s
        self._workers: dict[int, Worker] = {}
        self._account = Account(version, device, pages, arbiter, self._host)
        self._extensions = Extensions(pages, arbiter, self._workers, self._refuse)
        self._parking = Parking(self._host, arbiter, self._workers, parking, revoke_timeout_s)
        self._parking.connect(self._have_leave, self._refuse)
        self._giving_way = GivingWay(arbiter, self._workers)
        self._damage = Damage(arbiter, self._workers, self._account, revoke_timeout_s)
        self._conducting = conducting
        self._strangers = Strangers(self._account, conducting, self._workers)

    def handle(self, peer: Peer, message: p.ClientMessage, now_s: float, fd: int = -1) -> bool:
        """Act on one message; False if the peer is to be disconnected.

        A descriptor that came along stays the caller's. Raises ProtocolError for a message out of
        turn, which changes nothing.
        """
        if self._strangers.said(peer, message, now_s):
            return True
        if isinstance(message, p.Hello):
            return self._hello(peer, message, now_s)
        if peer.key is None:
            raise ProtocolError("the first message of a worker is Hello")
        if isinstance(message, p.Goodbye):
            self._workers[peer.key].left = True
            return False  # what it has not given back stays on its account
        asks = isinstance(message, _ASKS)
        try:
            self._worker_said(self._workers[peer.key], peer.key, message, now_s, fd)
        except GpupoolError as error:
            # Nobody waits for an answer to what was merely told, and an image may have more
            # parts on their way, each of which would be answered.
            if not asks or isinstance(error, ProtocolError):
                raise ProtocolError(str(error)) from error
            self._refuse(self._workers[peer.key], error)
        return True

    def lost(self, peer: Peer, now_s: float) -> bool:
        """The peer's connection or process has ended; True once it can be forgotten.

        What was handed to it stays out of use until nobody can touch it: its process has exited,
        and with the end of the connection every process forked from it that shares its memory. A
        process that holds pages is made to exit, for nothing can ask it for them any more.
        """
        peer.lost = True
        self._conducting.lost(peer)
        if peer.key is None:
            return True
        worker = self._workers[peer.key]
        forget(worker)
        gone = peer.exited and not peer.connected
        holds_pages = self.holds_pages(peer)
        if gone or not (holds_pages or self._host.holds(peer.key)):
            self._arbiter.remove(peer.key)
            self._conducting.left(peer.key)
            self._host.forget(peer.key)
            del self._workers[peer.key]
            peer.key = None
            return True
        if worker.ends_until_s is None and not worker.left:
            worker.ends_until_s = now_s + self._revoke_timeout_s
        if not self._arbiter.lease(peer.key).fenced:
            self._arbiter.fence(peer.key, now_s)
            worker.due = None
            if holds_pages:
                peer.kill()
        return False

    def holds_pages(self, peer: Peer) -> bool:
        """Whether pages are granted to the peer."""
        if peer.key is None:
            return False
        pinned = self._arbiter.lease(peer.key).pinned  # which it was not given yet
        return len(self._pages.owned(peer.key)) > len(pinned)

    def settle(self, now_s: float) -> float | None:
        """Send what the arbiter decides; when to call again at the latest."""
        look_at_s = self._parking.settle(now_s)
        wake_at_s = self._extensions.settle(now_s)
        turn_ends_s = None
        while wake_at_s is None:
            turn_ends_s = self._conducting.settle(now_s)
            outcome = self._arbiter.decide(now_s)
            for revoke in outcome.revoked:
                self._revoke(revoke.key, now_s, revoke.keep)
            self._cool(outcome.cooled, now_s)
            for key, error in outcome.failed:
                self._refuse(self._workers[key], error)
                self._expect_back(self._workers[key], key, now_s)
            granted = [self._grant(grant, now_s) for grant in outcome.granted]
            granted += [self._grant(begun, now_s, last=False) for begun in outcome.begun]
            if all(granted) and not outcome.failed:
                wake_at_s = outcome.wake_at_s
                break
            # What did not go out is free for the next in line.
        self._giving_way.settle()
        for also_s in (look_at_s, turn_ends_s):
            if also_s is not None:
                wake_at_s = also_s if wake_at_s is None else min(wake_at_s, also_s)
        for worker in self._workers.values():
            if worker.overdue(now_s):
                self._account.note(worker.name, worker.peer.pid, worker.kill(now_s))
            elif worker.due is not None:
                at_s = worker.due.at_s
                wake_at_s = at_s if wake_at_s is None else min(wake_at_s, at_s)
        return wake_at_s

    def _revoke(self, key: int, now_s: float, keep: int = 0, park: ParkOrder | None = None) -> None:
        self._workers[key].revoke(self._revoke_timeout_s, now_s, keep, park)

    def _have_leave(self, park: ParkOrder, now_s: float) -> None:
        self._arbiter.revoke(park.key, now_s)
        self._revoke(park.key, now_s, park=park)

    def _cool(self, asked: list[Cool], now_s: float) -> None:
        for cool in asked:
            self._workers[cool.key].expect(p.Cool(self._revoke_timeout_s, cool.pages), now_s)

    def _hello(self, peer: Peer, message: p.Hello, now_s: float) -> bool:
        if peer.key is not None:
            raise ProtocolError("a worker says Hello once")
        try:
            if message.version != p.PROTOCOL_VERSION:
                raise RefusedError(
                    f"the daemon speaks version {p.PROTOCOL_VERSION} of its protocol and the "
                    f"worker version {message.version}: run the same gpupool on both sides"
                )
            name = message.model
            if not (0 < len(name) <= p.NAME_CHARACTERS_MAX and name.isprintable()):
                raise RefusedError(
                    f"a model's name has 1 to {p.NAME_CHARACTERS_MAX} printable characters"
                )
            key = self._arbiter.add(name, now_s)
        except GpupoolError as error:
            self._account.note(message.model, peer.pid, str(error))
            peer.say(p.Refused("refused", p.one_line(str(error))))
            return False
        peer.key = key
        self._workers[key] = Worker(peer, name)
        self._conducting.joined(key, name)
        peer.say(
            p.Welcome(
                self._device,
                self._pages.page_bytes,
                self._arbiter.budget_bytes,
                self._min_tokens,
                self._parking.folder,
                self._conducting.follows_requests,
            )
        )
        return True

    def _worker_said(
        self, worker: Worker, key: int, message: p.ClientMessage, now_s: float, fd: int
    ) -> None:
        if self._parking.said(worker, key, message, now_s):
            return
        if self._conducting.said(worker, key, message, now_s):
            return
        if self._damage.said(worker, key, message, now_s):
            return
        match message:
            case p.Declare():
                detail = f"weights {message.weights_bytes}, KV cache {message.kv_cache_bytes}"
                contents = self._images.contents(key, message.shared)
                self._arbiter.declare(key, message.pages, detail, message.warmable, contents)
                worker.weights_bytes = message.weights_bytes
                worker.kv_cache_bytes = message.kv_cache_bytes
                worker.peer.say(p.Ok())
            case p.Acquire():
                worker.asked(ahead=message.ahead and not self._arbiter.lease(key).hurried)
                worker.images.come()
                self._arbiter.request(key, now_s, early=message.early, ahead=message.ahead)
            case p.Hurry():
                worker.ahead = False
                self._arbiter.hurry(key, now_s)
                self._parking.hurry(key)
            case p.Cancel():
                if self._arbiter.cancel(key, now_s, mapped=message.mapped):
                    worker.peer.say(p.Ok())
                    self._expect_back(worker, key, now_s)
            case p.Extend():
                self._cool(self._arbiter.make_room(key, message.pages, now_s), now_s)
                self._extensions.ask(worker, message.pages, now_s)
            case p.Release():
                self._arbiter.shrink(key, message.pages, leaving=message.leaving)
            case p.ShareImage() | p.ImageSettled() | p.ImageUnshared():
                self._images.heard(worker, key, message, fd)
            case p.Holds():
                self._arbiter.has(key, dict(enumerate(message.pages, message.first)))
            case p.Arrived():
                if not worker.arriving:
                    raise ProtocolError("a model arrives once after each grant")
                worker.arrived(message.swap)
                lease = self._arbiter.lease(key)
                page_bytes = self._pages.page_bytes
                self._conducting.arrived(key, message.swap, lease, page_bytes, now_s)
            case p.Yielded():
                self._arbiter.yielded(key, now_s, message.keeps)
                worker.gave_back(message.swap)
            case p.BlocksMoved():
                worker.moved_blocks(message)
            case p.Cooled():
                self._arbiter.cooled(key, now_s)
                worker.due = None
            case p.Kept():
                if worker.due is None:
                    return  # this crossed a Yielded
                if message.stays:
                    worker.due = None
                    self._arbiter.keep(key, now_s, stays=p.one_line(message.message))
                else:  # the deadline of its revoke stands
                    self._account.note(worker.name, worker.peer.pid, message.message)
            case p.Lasting():
                worker.lasts(message.step_s, now_s)
            case p.Idle():
                self._arbiter.set_idle(key, message.idle, now_s)
            case _:
                raise ProtocolError(f"a worker does not say {type(message).__name__}")

    def _grant(self, granted: Granted, now_s: float, *, last: bool = True) -> bool:
        """Send pages of a lease; False if they cannot be exported, which undoes the grant."""
        worker = self._workers[granted.key]
        try:
            exported = export(self._pages, worker, [*granted.pages, *granted.shared.values()])
        except DriverError as error:
            self._arbiter.undo(granted, now_s)
            self._refuse(worker, error)
            self._expect_back(worker, granted.key, now_s)
            return False
        worker.waited_s = granted.waited_s
        worker.arriving = last
        send_pages(worker, granted.pages, exported, last=last, shared=granted.shared)
        return True

    def _expect_back(self, worker: Worker, key: int, now_s: float) -> None:
        """What a model began with, and cannot go on with."""
        if self._arbiter.is_leaving(key):
            self._revoke(key, now_s)

    def _refuse(self, worker: Worker, error: GpupoolError) -> None:
        worker.peer.say(self._account.refuse(worker.name, worker.peer.pid, error))
