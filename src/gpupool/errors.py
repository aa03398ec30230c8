"""What can go wrong, as exceptions. Each message is one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Sequence


class GpupoolError(Exception):
    """Base of every error gpupool raises on its own account."""


class DriverError(GpupoolError):
    """A driver call failed; the operation was undone.

    ``call`` is the driver call and ``status`` its CUresult code.
    """

    def __init__(self, message: str, call: str, status: int) -> None:
        super().__init__(message)
        self.call = call
        self.status = status


class UsageError(GpupoolError, ValueError):
    """The caller broke a precondition; nothing was changed."""


class BehindGateError(UsageError, AttributeError):
    """A model was reached for without its memory being held in place.

    An AttributeError too: what only asks whether a worker has a model is told that it has none.
    """


class StaleBlockError(UsageError):
    """A slab's block is not in use under this handle: freed already, handed out again, or never.

    ``slab``, ``block`` and ``generation`` are what the handle names.
    """

    def __init__(self, message: str, slab: int, block: int, generation: int) -> None:
        super().__init__(message)
        self.slab = slab
        self.block = block
        self.generation = generation


class OutOfBlocksError(GpupoolError):
    """Every block of that size is in use and the limit on slabs is reached."""


class NoSlabSuppliedError(OutOfBlocksError):
    """A slab allocator over supplied memory needs another slab than those it was given."""


class KvStoreFullError(GpupoolError):
    """The host has no room for the KV blocks that a step is to write; nothing was changed.

    A model that writes them all the same cannot leave before there is room.
    """


class HostMemoryError(GpupoolError):
    """The system refused host memory."""


class ImageDamagedError(GpupoolError):
    """A file of images is not what was written; nothing of it may be used."""


class ImageReadError(GpupoolError):
    """The system could not read a file of images; nothing of it may be used."""


class ImageWriteError(GpupoolError):
    """A file of images could not be written; whatever was in its place is there still."""


class DoesNotFitError(GpupoolError):
    """A model can never be resident: it needs more than the whole budget."""

    def __init__(self, message: str, needed_bytes: int, budget_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes


class PoolFullError(GpupoolError):
    """Fewer pages are free than a resident model asked for; it goes on with those it has."""


class DamagedMemoryError(GpupoolError):
    """A model's image or KV block, or what arrived of it on the device, is not what was saved.

    The model is out and stays out: each attempt to bring it in is verified, and refused, again. Of
    a KV block that follows behind a swap-in, the steps that need it are.
    """

    def __init__(self, message: str, pages: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.pages = tuple(pages)
        """Those, by ``Page.handle``, on which it was found and that others may have as well."""


class GangBrokenError(GpupoolError):
    """The ranks of an engine do not go together any more: it must be started anew."""


class NotBegunError(GpupoolError):
    """Memory stays where it is for now: of a rank whose turn is about to begin."""


class SwapCancelledError(GpupoolError):
    """A swap-in was cancelled; the model is out as before."""


class LeaseTimeoutError(GpupoolError):
    """A model was not granted its memory in time."""


class DaemonUnavailableError(GpupoolError):
    """The pool daemon cannot be reached, or went away."""


class ProtocolError(GpupoolError):
    """A message of the daemon's protocol was malformed, too large or out of turn."""


class RefusedError(GpupoolError):
    """The pool turned a request down; the message says why."""
