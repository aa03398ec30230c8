"""A model's side of its conversation with an arbiter, wherever that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from gpupool._core import Driver, Page, SwapReport
from gpupool.sharing.images import Offer, Place


class Revocable(Protocol):
    """What a lease can be taken back from: a gate."""

    def give_up(
        self,
        timeout_s: float | None = None,
        is_stale: Callable[[], bool] | None = None,
        keep: int = 0,
        park_s: float | None = None,
        longer_s: Callable[[], float] | None = None,
    ) -> bool:
        """Give the memory up at the next step boundary, within ``timeout_s``.

        ``keep`` pages may stay, warm; with ``park_s`` the images go too, as by ``park``. False if
        there is nothing to give up, as when ``is_stale`` says that the lease which was revoked has
        ended by itself. ``longer_s`` says, at any time, by how much the timeout is put off.
        """

    def cool(self, pages: int) -> None:
        """Give so many warm pages back, or what there is of them, and say so to the session."""

    def park(self, deadline_s: float) -> None:
        """Let the images of a model that is out go to a file, and tell the session."""

    def fetch_ahead(self, share: float) -> bool:
        """Bring the model in before a step asks for it, copying for ``share`` of the time.

        False unless it was out.
        """

    def distrust(self) -> None:
        """Begin no step before the model has left, with all its pages: one of them is wrong.

        Waits for nothing. It leaves as it is asked to, or by itself as a step is to begin.
        """

    @property
    def used_s(self) -> float:
        """When the memory was last used, by ``time.monotonic``."""


class Early(Protocol):
    """What of a swap-in can be done on some of the pages, while others still leave."""

    def use(self, pages: list[Page]) -> int:
        """Use the first so many of these. After an error none of them is, unless ``undo`` fails."""

    def undo(self) -> bool:
        """Let go of all, and of warm ones; False if the driver does not let them be unmapped."""


Wanted = Callable[[], bool]


class PageGrant(NamedTuple):
    """Pages to be mapped in this order; the first ``clean`` of them read as zeros.

    Beside them are ``shared`` ones, which have what the model's have at these places among those
    that can be warm.
    """

    pages: list[Page]
    clean: int = 0
    shared: Sequence[tuple[int, Page]] = ()


class BlocksMoved(NamedTuple):
    """What went over the link of KV blocks that keepers keep one by one."""

    saved_bytes: int
    saving_s: float
    """While any of them were under way, as far as was seen."""
    restored_bytes: int
    restoring_s: float
    recopied_bytes: int
    """Of the restored, what did not arrive as it should at first, and did at a second attempt."""


class HostGrant(NamedTuple):
    """Memfds for images, which the receiver closes."""

    fds: list[int]
    keeps_file: bool = False
    """What comes back from a file may stay there as well."""


class Session(Protocol):
    """What a model asks of an arbiter: the embedded one or the daemon's."""

    @property
    def driver(self) -> Driver:
        """The device that the pages are on."""

    @property
    def page_bytes(self) -> int:
        """Size of every page."""

    def bind(self, holder: Revocable) -> None:
        """Whom to tell, on any thread, when the lease is revoked."""

    def host_memory(self, size_bytes: int) -> int:
        """A memfd of that size for a host image; the caller closes it.

        Raises RefusedError, or OSError when the system has no more.
        """

    @property
    def parking(self) -> Path | None:
        """The folder for images that are parked; None where none ever are."""

    @property
    def file_limit_bytes(self) -> int:
        """How large the file for them may be, by the latest wish that they be parked."""

    def parkable(self, size_bytes: int) -> None:
        """So much of the host memory for images may go to a file from now on."""

    def host_memories(
        self,
        sizes_bytes: Sequence[int],
        timeout_s: float,
        wanted: Wanted | None = None,
        *,
        returns: bool = False,
    ) -> HostGrant:
        """A memfd of each of these sizes, all at once, waiting while others park theirs.

        ``returns`` if they are for parked images; ``wanted`` is as ``acquire`` has it. Raises
        RefusedError if nobody can make room, LeaseTimeoutError, SwapCancelledError,
        DaemonUnavailableError, or OSError when the system has no more; nothing is held then.
        """

    def parked(
        self, size_bytes: int, file_bytes: int, why: str = "", *, passes: bool = False
    ) -> None:
        """What came of the wish that the images be parked; 0 and why if nothing, or in use.

        ``passes`` says that who waits for the memory had better wait than be refused.
        """

    def unparked(self, size_bytes: int, file_bytes: int, read_s: float) -> None:
        """What was read back of parked images; 0 if they are parked still."""

    def return_host_memory(self, size_bytes: int) -> None:
        """So much of it is closed and nowhere mapped any more, in whole memfds."""

    def share_image(self, fd: int, size_bytes: int, contents: Sequence[bytes]) -> Offer:
        """What an image, whose memfd is ``fd``, can be made of; its descriptors are the caller's.

        ``contents`` are the hashes of its whole pages. Raises RefusedError or OSError.
        """

    def settle_image(self, number: int, *, done: bool, gone: bool) -> None:
        """It is made of that from now on, or stays what it is; what it was is ``gone``, or not."""

    def unshare_image(self, number: int) -> None:
        """Nothing of a shared image is mapped any more."""

    def declare(
        self,
        pages: int,
        weights_bytes: int,
        kv_cache_bytes: int,
        warmable: int = 0,
        shared: Sequence[Place] = (),
    ) -> None:
        """The footprint that ``acquire`` will be about, and how much of it can be warm.

        Of the latter some may be ``shared``. Raises DoesNotFitError.
        """

    def acquire(
        self, timeout_s: float, early: Early | None = None, ahead: Wanted | None = None
    ) -> PageGrant:
        """Wait for the lease: the pages that are neither warm nor used by ``early`` meanwhile.

        ``ahead`` of use it comes after all others, from idle models alone, and for as long as that
        says that it is wanted. Raises LeaseTimeoutError, SwapCancelledError for what is not wanted,
        DaemonUnavailableError, what ``early.use`` does, or DriverError when the device cannot
        provide the pages; nothing is held then but warm pages, or what ``early`` cannot undo.
        """

    def hurry(self) -> None:
        """What is being acquired ahead is waited for now."""

    def extend(self, pages: int) -> PageGrant:
        """More pages for a lease that is held, of those that are free now.

        Raises PoolFullError if there are not enough, DaemonUnavailableError or DriverError;
        nothing has changed then.
        """

    def release(self, handles: Sequence[int], *, leaving: bool = False) -> None:
        """Pages of the lease, named by ``Page.handle``, are not mapped any more.

        The lease is for so many fewer, unless the model is ``leaving``: then they only go ahead of
        the rest, or are warm.
        """

    def cooled(self) -> None:
        """The warm pages that were asked for are released, as far as could be."""

    def has(self, first: int, handles: Sequence[int]) -> None:
        """Pages, named by ``Page.handle``, have what was declared for the places from ``first``."""

    def arrived(self, report: SwapReport) -> None:
        """The model is resident."""

    def give_back(self, report: SwapReport | None, keeps: int = 0) -> None:
        """No page of the lease is mapped any more; ``report`` is None if nothing was swapped.

        But for the ``keeps`` pages that are warm now, when all others have been released.
        """

    def damaged(self, message: str, handles: Sequence[int] = ()) -> None:
        """Memory was not what was saved: the model does not come in.

        With the ``handles`` of pages that others may have as well and that it holds still: before
        their next step those leave, and come anew.
        """

    def others_arrive(self) -> bool:
        """Whether somebody waits for another model that is coming in: what comes ahead waits."""

    def blocks_moved(self, moved: BlocksMoved) -> None:
        """What a keeper has moved of KV blocks since it told last."""

    def lasting(self, step_s: float) -> AbstractContextManager[None]:
        """Steps that begin in a ``with`` block may take so long before a revoke is obeyed."""

    def set_idle(self, idle: bool) -> None:
        """Whether there is unfinished work."""

    def close(self) -> None:
        """Leave the pool. Gives back what is held; idempotent."""
