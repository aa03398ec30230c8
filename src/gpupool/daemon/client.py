"""A model's session with the daemon, in its worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from gpupool._core import Driver, SwapReport
from gpupool.daemon import protocol as p
from gpupool.daemon.host_request import host_memories
from gpupool.daemon.lasting import Lasting
from gpupool.daemon.lease_request import Answer, LeaseRequest, collect
from gpupool.daemon.limits import in_parts
from gpupool.daemon.link import REPLY_TIMEOUT_S, Link, ask, connect
from gpupool.daemon.obeying import Obeying
from gpupool.daemon.page_table import PageTable
from gpupool.daemon.share_request import ask_to_share
from gpupool.devices import open_driver
from gpupool.errors import ProtocolError, UsageError
from gpupool.session import BlocksMoved, Early, HostGrant, PageGrant, Revocable, Wanted
from gpupool.sharing.images import Offer, Place


class DaemonSession:
    """A model's session with the pool daemon of this machine.

    One thread of its own hears the daemon and others obey it. The process is killed if it
    drops the connection, or ends the session, while it holds pages.
    """

    def __init__(self, socket_path: Path, model: str) -> None:
        """Join the pool as ``model``.

        Raises DaemonUnavailableError, RefusedError (the name is taken), UsageError (the
        pool's pages are more than this process may open files), or what opening its device raises.
        """
        connection = connect(socket_path, REPLY_TIMEOUT_S)
        try:
            welcome = ask(connection, p.Hello(p.PROTOCOL_VERSION, model))
            if not isinstance(welcome, p.Welcome):
                raise ProtocolError(f"the daemon answered {type(welcome).__name__} to Hello")
            self._driver = open_driver(welcome.device)
            self._table = PageTable(self._driver, welcome.page_bytes, welcome.budget_bytes)
        except BaseException:
            connection.close()
            raise
        self._page_bytes = welcome.page_bytes
        self.budget_bytes, self.min_tokens = welcome.budget_bytes, welcome.min_tokens
        self._parking = Path(welcome.parking) if welcome.parking else None
        self.follows_requests = welcome.follows_requests
        """Whether the daemon's policy goes by what is told of requests."""
        self._asking = threading.Lock()
        self._acquires = 0
        self._emptied = -1  # the acquire of which nothing is held any more
        self._obeying = Obeying()
        self._link = Link(connection, self._obeying.order, self._obeying.wish)
        self._lasting = Lasting(self._link)
        self._obeying.start(self._link, self._is_stale, self._lasting)

    @property
    def driver(self) -> Driver:
        """The daemon's device, opened in this process."""
        return self._driver

    @property
    def page_bytes(self) -> int:
        """Size of every page."""
        return self._page_bytes

    def bind(self, holder: Revocable) -> None:
        """Whom to tell, on a thread of the session, when the lease is revoked."""
        self._obeying.holder = holder

    def host_memory(self, size_bytes: int) -> int:
        """A memfd of that size for a host image; the caller closes it. Raises RefusedError."""
        if not 0 < size_bytes <= p.COUNT_MAX:
            raise UsageError(f"{size_bytes} is no size for host memory")
        with self._asking:
            reply = self._link.request(p.HostMemory(size_bytes), p.HostMemory)
        if len(reply.fds) != 1:
            self._link.out_of_turn(reply)
        return reply.fds[0]

    @property
    def parking(self) -> Path | None:
        """The folder for images that are parked; None where none ever are."""
        return self._parking

    @property
    def file_limit_bytes(self) -> int:
        """How large the file for them may be, by the latest wish that they be parked."""
        return self._obeying.file_limit_bytes

    def parkable(self, size_bytes: int) -> None:
        """So much of the host memory for images may go to a file from now on."""
        self._link.send(p.Parkable(size_bytes))

    def host_memories(
        self,
        sizes_bytes: Sequence[int],
        timeout_s: float,
        wanted: Wanted | None = None,
        *,
        returns: bool = False,
    ) -> HostGrant:
        """A memfd of each of these sizes, as ``Session.host_memories``."""
        if not 0 < len(sizes_bytes) <= p.FDS_MAX or not all(
            0 < size_bytes <= p.COUNT_MAX for size_bytes in sizes_bytes
        ):
            raise UsageError(f"{sizes_bytes} are no sizes for host memory")
        with self._asking:
            return host_memories(self._link, sizes_bytes, timeout_s, wanted, returns=returns)

    def parked(
        self, size_bytes: int, file_bytes: int, why: str = "", *, passes: bool = False
    ) -> None:
        """What came of the wish that the images be parked; 0 and why if nothing, or in use."""
        self._link.send(p.Parked(size_bytes, file_bytes, p.one_line(why), passes))

    def unparked(self, size_bytes: int, file_bytes: int, read_s: float) -> None:
        """What was read back of parked images; 0 if they are parked still."""
        self._link.send(p.Unparked(size_bytes, file_bytes, read_s))

    def return_host_memory(self, size_bytes: int) -> None:
        """So much of it is closed and nowhere mapped any more, in whole memfds."""
        self._link.send(p.HostMemoryUnused(size_bytes))

    def share_image(self, fd: int, size_bytes: int, contents: Sequence[bytes]) -> Offer:
        """What an image can be made of, as ``Session.share_image``."""
        with self._asking:
            return ask_to_share(self._link, fd, size_bytes, contents)

    def settle_image(self, number: int, *, done: bool, gone: bool) -> None:
        """It is made of that from now on, or stays what it is."""
        self._link.send(p.ImageSettled(number, done, gone))

    def unshare_image(self, number: int) -> None:
        """Nothing of a shared image is mapped any more."""
        self._link.send(p.ImageUnshared(number))

    def declare(
        self,
        pages: int,
        weights_bytes: int,
        kv_cache_bytes: int,
        warmable: int = 0,
        shared: Sequence[Place] = (),
    ) -> None:
        """The footprint that ``acquire`` will be about, as ``Session.declare``."""
        said = p.Declare(pages, weights_bytes, kv_cache_bytes, warmable, list(shared))
        with self._asking:
            self._link.request(said, p.Ok)

    def acquire(
        self, timeout_s: float, early: Early | None = None, ahead: Wanted | None = None
    ) -> PageGrant:
        """Wait for the lease, as ``Session.acquire``."""
        return self._lease(timeout_s, early, ahead, ahead=ahead is not None)

    def hurry(self) -> None:
        """What is being acquired ahead is waited for now."""
        self._link.send(p.Hurry())

    def extend(self, pages: int) -> PageGrant:
        """More pages for a lease that is held, of those that are free now.

        Raises PoolFullError, DaemonUnavailableError or DriverError; nothing has changed then.
        """
        if not 0 < pages <= p.COUNT_MAX:
            raise UsageError(f"{pages} is no number of pages")
        ids: list[int] = []
        with self._asking:
            self._link.send(p.Extend(min(pages, p.PAGES_MAX)))
            deadline_s = time.monotonic() + REPLY_TIMEOUT_S
            if collect(self._link, self._table, ids, deadline_s) is not Answer.GRANTED:
                self._link.fail("the pool daemon does not answer")
            try:
                return PageGrant(self._table.pages(ids))
            except BaseException:
                self._release(ids, leaving=False)
                raise

    def release(self, handles: Sequence[int], *, leaving: bool = False) -> None:
        """Pages of the lease, named by ``Page.handle``, are not mapped any more."""
        self._release(self._table.numbers(handles), leaving)

    def cooled(self) -> None:
        """The warm pages that were asked for are released, as far as could be."""
        self._link.send(p.Cooled())

    def has(self, first: int, handles: Sequence[int]) -> None:
        """Pages have what was declared for the places from ``first`` on."""
        for part in in_parts(self._table.numbers(handles)):
            self._link.send(p.Holds(first, part))
            first += len(part)

    def arrived(self, report: SwapReport) -> None:
        """The model is resident."""
        self._link.send(p.Arrived(p.SwapFigures.of(report)))

    def give_back(self, report: SwapReport | None, keeps: int = 0) -> None:
        """No page of the lease is mapped any more; ``report`` is None if nothing was swapped.

        But for the ``keeps`` pages that are warm now, when all others have been released.
        """
        lease = self._acquires
        if keeps == 0 and self._emptied == lease:
            return  # whoever told it was interrupted then, and to the daemon it would be a fault
        self._link.send(p.Yielded(None if report is None else p.SwapFigures.of(report), keeps))
        if keeps == 0:
            self._emptied = lease

    def damaged(self, message: str, handles: Sequence[int] = ()) -> None:
        """Memory was not what was saved, as ``Session.damaged``."""
        for part in in_parts(self._table.numbers(handles)):
            self._link.send(p.WrongPages(part))
        self._link.send(p.Damaged(p.one_line(message)))

    def blocks_moved(self, moved: BlocksMoved) -> None:
        """What keepers moved of KV blocks since they told last."""
        self._link.send(p.BlocksMoved(*moved))

    def working(self, work: p.Working) -> bool:
        """What steps did; False if the daemon is too busy to be told now. Never waits.

        Of use only where the daemon ``follows_requests``.
        """
        return self._link.send_at_once(work)

    def set_goals(self, ttft_s: float | None, tbt_s: float | None, weight: float = 1.0) -> None:
        """When this model's tokens are due, None as for all, and how much it counts."""
        self._link.send(p.WorkGoals(ttft_s, tbt_s, weight))

    def others_arrive(self) -> bool:
        """Whether somebody waits for another model that is coming in."""
        return self._obeying.gives_way(self._acquires)

    def lasting(self, step_s: float) -> AbstractContextManager[None]:
        """Steps that begin in a ``with`` block may take so long before a revoke is obeyed."""
        return self._lasting.steps(step_s)

    def set_idle(self, idle: bool) -> None:
        """Whether there is unfinished work."""
        self._link.send(p.Idle(idle))

    def close(self) -> None:
        """Leave the pool; idempotent. The pages must have been given back."""
        self._link.close()
        self._obeying.stop()
        self._table.close()

    def _lease(
        self, timeout_s: float, early: Early | None, wanted: Wanted | None, *, ahead: bool
    ) -> PageGrant:
        with self._asking:
            self._acquires += 1
            request = LeaseRequest(self._link, self._table, early, wanted, ahead=ahead)
            return request.grant(timeout_s)

    def _release(self, ids: list[int], leaving: bool) -> None:
        for part in in_parts(ids):
            self._link.send(p.Release(part, leaving))

    def _is_stale(self, revoke: p.Revoke) -> bool:
        return revoke.lease != self._acquires
