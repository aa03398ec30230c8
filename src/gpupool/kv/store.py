"""Host copies of the KV blocks of one model: rows in slabs of pinned memory, under a budget.

A model has a store, and host memory, of its own: no other worker ever has a descriptor of it. All
rows of a model are as long as each other, so that a slab has one shape by construction.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gpupool._core import Driver, SlabAllocator, SuppliedSlabs
from gpupool.errors import (
    DaemonUnavailableError,
    DriverError,
    HostMemoryError,
    KvStoreFullError,
    RefusedError,
    UsageError,
)
from gpupool.host_images import HostMemorySource, host_memory, in_system_pages
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.blocks import Blocks, Flags, Words

SLAB_BYTES = 64 << 20
_ALIGNMENT = 16  # of rows: what a kernel reads and writes at once
_ROWS_MAX = 1 << 16  # in a slab
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class StoreSession(HostMemorySource, Protocol):
    """What of a Session the store asks for."""

    @property
    def driver(self) -> Driver:
        """The device that the memory is registered with."""


@dataclass(frozen=True)
class KvIdentity:
    """What a host copy is a copy of. Equal bytes mean the same only under an equal identity."""

    model: str
    weights_version: int
    dtype: str
    layout: BlockLayout


@dataclass(frozen=True)
class KvStoreStatistics:
    """What a store holds."""

    budget_bytes: int
    held_bytes: int  # of all slabs, those lost included
    row_bytes: int
    rows_held: int
    rows_live: int
    slabs: int
    slabs_lost: int  # that the driver did not let go: held until the process ends


class KvStore:
    """Rows for the blocks of one identity. Thread safe.

    What is in flight to or from a row is the caller's affair: ``release`` and ``free`` say that
    nothing is.
    """

    def __init__(
        self,
        session: StoreSession,
        identity: KvIdentity,
        *,
        budget_bytes: int | None = None,
        slab_bytes: int = SLAB_BYTES,
    ) -> None:
        """Start without memory, which comes from ``session`` in slabs of about ``slab_bytes``.

        Without a budget there may be as many slabs as all blocks need. Raises UsageError for a
        budget that does not hold one row.
        """
        layout = identity.layout
        self._stride = -(-layout.row_bytes // _ALIGNMENT) * _ALIGNMENT
        wanted_bytes = layout.blocks * self._stride if budget_bytes is None else budget_bytes
        rows = min(_ROWS_MAX, max(1, min(slab_bytes, wanted_bytes) // self._stride))
        self._slab_bytes = in_system_pages(rows * self._stride)
        self._rows_per_slab = self._slab_bytes // self._stride
        if budget_bytes is None:
            budget_bytes = -(-layout.blocks // self._rows_per_slab) * self._slab_bytes
        if self._slab_bytes > budget_bytes:
            raise UsageError(
                f"a KV store of {budget_bytes} bytes holds no slab of {self._slab_bytes} bytes, "
                f"and a block has {layout.row_bytes}: give it a larger budget"
            )
        self._slabs_max = budget_bytes // self._slab_bytes
        self._budget_bytes = budget_bytes
        self._session = session
        self._identity = identity
        self._source = SuppliedSlabs(session.driver, self._slab_bytes)
        self._slabs = SlabAllocator.on_supplied(self._source, [self._stride], self._slabs_max)
        self._lock = threading.Lock()
        self._handles: Words = np.zeros(layout.blocks, np.uint64)  # 0 is none
        self._addresses: Words = np.zeros(layout.blocks, np.uint64)
        self._live = 0
        self._closed = False

    @property
    def identity(self) -> KvIdentity:
        """Whose blocks these are."""
        return self._identity

    @property
    def rows_max(self) -> int:
        """How many rows the budget has room for."""
        return self._slabs_max * self._rows_per_slab

    @property
    def row_bytes(self) -> int:
        """The bytes of one block."""
        return self._identity.layout.row_bytes

    def rekey(self, identity: KvIdentity) -> None:
        """From now on the blocks are those of ``identity``, as after an update of the weights.

        Raises UsageError while there are rows, which would be taken for what they are not, and for
        another layout, which needs a store of its own.
        """
        with self._lock:
            if identity.layout != self._identity.layout:
                raise UsageError("blocks of another layout need a KV store of their own")
            if self._live > 0:
                raise UsageError(
                    f"{self._live} KV blocks of {name_of(self._identity)} are kept: forget them "
                    f"before the store is used for {name_of(identity)}"
                )
            self._identity = identity

    def reserve(self, blocks: Blocks) -> None:
        """A row for each of the blocks, which have none: all or none.

        Raises KvStoreFullError where the budget, the pool's budget of host memory, the system or
        the driver has no room or the daemon that has it is gone, DriverError where memory cannot be
        registered for another reason, UsageError for a block that has a row; nothing has changed
        then.
        """
        with self._lock:
            if self._closed:
                raise UsageError("a closed KV store keeps nothing")
            if self._handles[blocks].any():
                raise UsageError("a block that has a row needs no other")
            handles: Words = np.zeros(len(blocks), np.uint64)
            addresses: Words = np.zeros(len(blocks), np.uint64)
            try:
                self._make_room(len(blocks))
                self._slabs.allocate_many(self._stride, handles.data)
            except BaseException:
                self._return_idle()
                raise
            self._slabs.addresses_of(handles.data, addresses.data)
            self._handles[blocks] = handles
            self._addresses[blocks] = addresses
            self._live += len(blocks)

    def has_row(self, blocks: Blocks) -> Flags:
        """Of each block whether it has a row."""
        with self._lock:
            return self._handles[blocks].astype(np.bool_)

    def addresses(self, blocks: Blocks, identity: KvIdentity) -> Words:
        """Where the rows are, for who knows whose they are.

        Raises UsageError for another identity than the store's, or a block without a row.
        """
        with self._lock:
            if identity != self._identity:
                raise UsageError(
                    f"KV blocks of {name_of(self._identity)} are no blocks of {name_of(identity)}: "
                    "their requests must be computed again"
                )
            self._check_rows(blocks)
            return self._addresses[blocks]

    def release(self, blocks: Blocks) -> None:
        """The blocks have no row any more. Raises UsageError if one has none; nothing changes."""
        self.free(self.retire(blocks))

    def retire(self, blocks: Blocks) -> Words:
        """Take the rows from their blocks without freeing them; ``free`` takes what this returns.

        For rows that something in flight still touches. Raises UsageError if a block has none.
        """
        with self._lock:
            self._check_rows(blocks)
            handles = self._handles[blocks]
            self._handles[blocks] = 0
            self._addresses[blocks] = 0
            return handles

    def free(self, rows: Words) -> None:
        """Retired rows may be used again. Slabs that are empty now go back to the session.

        All but one: the next row is likely to be asked for soon.
        """
        with self._lock:
            self._slabs.free_many(rows.data)
            self._live -= len(rows)
            self._return_idle()

    def trim(self) -> None:
        """Every slab without a row goes back to the session."""
        with self._lock:
            self._slabs.trim()
            self._return_idle()

    def close(self) -> None:
        """Give all memory back; idempotent. Raises UsageError while there are rows."""
        with self._lock:
            if self._live > 0:
                raise UsageError(f"{self._live} KV blocks are kept: forget them first")
            self._closed = True
        self.trim()

    def statistics(self) -> KvStoreStatistics:
        """What there is now."""
        with self._lock:
            lost = self._source.lost
            return KvStoreStatistics(
                budget_bytes=self._budget_bytes,
                held_bytes=(self._usable + lost) * self._slab_bytes,
                row_bytes=self.row_bytes,
                rows_held=self._usable * self._rows_per_slab,
                rows_live=self._live,
                slabs=self._usable,
                slabs_lost=lost,
            )

    @property
    def _usable(self) -> int:
        return self._source.in_use + self._source.idle

    def _check_rows(self, blocks: Blocks) -> None:
        if not self._handles[blocks].all():
            raise UsageError("a block that was never reserved has no row")

    def _make_room(self, rows: int) -> None:
        while self._live + rows > self._usable * self._rows_per_slab:
            slabs = -(-(self._live + rows) // self._rows_per_slab)
            if slabs + self._source.lost > self._slabs_max:
                raise self._full(rows, "give it a larger budget, or the model fewer requests")
            self._grow(rows)

    def _grow(self, rows: int) -> None:
        try:
            with host_memory(self._session, self._slab_bytes) as fd:
                self._source.supply(fd)
        except (RefusedError, HostMemoryError, OSError, DaemonUnavailableError) as error:
            raise self._full(rows, str(error)) from error
        except DriverError as error:
            if error.status != _OUT_OF_MEMORY:
                raise
            raise self._full(rows, f"the driver pins no more ({error})") from error

    def _full(self, rows: int, why: str) -> KvStoreFullError:
        held = self._usable + self._source.lost
        return KvStoreFullError(
            f"{rows} more KV blocks of {self.row_bytes} bytes do not fit into the host store of "
            f"{name_of(self._identity)}, where {self._live} are kept in "
            f"{held * self._slab_bytes} of {self._budget_bytes} bytes: {why}"
        )

    def _return_idle(self) -> None:
        self._returned(self._source.drop_idle())

    def _returned(self, slabs: int) -> None:
        for _ in range(slabs):
            with contextlib.suppress(DaemonUnavailableError):  # it counts nothing any more
                self._session.return_host_memory(self._slab_bytes)


def name_of(identity: KvIdentity) -> str:
    """As people should read it."""
    return f"{identity.model!r} (weights {identity.weights_version}, {identity.dtype})"
