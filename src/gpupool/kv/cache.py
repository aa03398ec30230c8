"""Which blocks of a KV cache are true on the device, which on the host, and which are on their way.

Three rules hold of every move: (a) what a step reads or writes is on the device before the step
begins; (b) nothing is in flight when the device memory goes; (c) no block is written while an
earlier move to it may still arrive, and no row used again while a move touches it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np

from gpupool.errors import KvStoreFullError, UsageError
from gpupool.kv.blocks import NO_BLOCKS, Blocks, ahead_of, as_blocks, in_chunks
from gpupool.kv.digests import BlockDigests
from gpupool.kv.mover import Mover
from gpupool.kv.moves import Move, MoveList
from gpupool.kv.states import KvCacheStatistics, MovedBytes, State
from gpupool.kv.store import KvIdentity, KvStore

CHUNK_BYTES = 64 << 20  # about a millisecond of a PCIe link of the fifth generation
WINDOW_BYTES = 1 << 30  # about a step: what a swap-out may have to wait for


class KvCache:
    """Keeps the blocks of a device's KV cache and their host copies apart and true.

    Thread safe: who waits for a move holds up nobody else, unless the mover itself waits, as a
    PlannedMover does when it changes ways. The device memory is there from ``restore`` to ``lost``.
    """

    def __init__(
        self,
        store: KvStore,
        mover: Mover,
        digests: BlockDigests,
        identity: KvIdentity,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        """Start without device memory, knowing nothing of any block.

        A move has at most ``chunk_bytes``, or one block. At most about ``window_bytes`` of what no
        step waits for are under way at a time, so that a swap-out need not wait for the rest.
        Raises UsageError if the store is another's or the mover moves other blocks.
        """
        if mover.row_bytes != identity.layout.row_bytes or store.identity != identity:
            raise UsageError("the store, the mover and the cache must be for the same blocks")
        self._mover = mover  # goes before the others do: it waits for what is in flight
        self._digests, self._store, self._identity = digests, store, identity
        self._blocks = identity.layout.blocks
        self._chunk = max(1, chunk_bytes // identity.layout.row_bytes)
        self._window = max(1, window_bytes // identity.layout.row_bytes)
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self._here = False
        self._state = np.full(self._blocks, State.UNKNOWN, np.uint8)
        self._arrives = np.zeros(self._blocks, np.int64)  # the last move to the block
        self._touched = np.zeros(self._blocks, np.int64)  # the last move from or to its row
        self._moves = MoveList(self._arrived, store.free)
        self._queue: Blocks = NO_BLOCKS  # to come, in this order, when there is time
        self._bytes = MovedBytes()

    # What a step does.

    def require(self, blocks: Iterable[int]) -> None:
        """Return when what a step reads or writes is on the device; starts on more of the rest.

        Raises UsageError while the device memory is gone, DriverError: require them again, and
        DamagedMemoryError for blocks that do not come back as they were.
        """
        wanted = as_blocks(blocks, self._blocks)
        while True:
            with self._lock:
                self._check_here()
                self._moves.poll()
                self._digests.check(wanted, self._identity)
                self._bring(wanted[self._state[wanted] == State.AWAY])
                number = int(self._arrives[wanted].max(initial=0))
                if self._moves.done >= number:
                    break
            self._wait(number)  # and what came otherwise than it was comes once more
        self.advance()

    def written(self, blocks: Iterable[int], *, unbacked: bool = False) -> None:
        """A step is about to write to these blocks; what it leaves of them is kept.

        Waits like ``require``. Rows are reserved now, so that a swap-out cannot fail for want of
        them: raises KvStoreFullError if there are too few, and what ``require`` does; nothing has
        changed then. With ``unbacked`` a full store is put up with, and ``save`` raises it instead:
        the model cannot leave before ``back`` has found room.
        """
        wanted = as_blocks(blocks, self._blocks)
        self.require(wanted)
        while True:
            with self._lock:
                self._check_here()
                try:
                    in_use_until = 0
                    self._reserve(wanted)
                except KvStoreFullError:
                    in_use_until = self._moves.held_until
                    if in_use_until == 0 and not unbacked:
                        raise
                if in_use_until == 0:
                    self._state[wanted] = State.WRITTEN
                    return
            self._wait(in_use_until)  # rows of forgotten blocks are free then

    def back(self) -> None:
        """Find room for unbacked blocks. Raises KvStoreFullError or DriverError."""
        with self._lock:
            self._reserve(self._unbacked())

    def forget(self, blocks: Iterable[int]) -> None:
        """What is in these blocks will never be read: the scheduler has given them up."""
        unwanted = as_blocks(blocks, self._blocks)
        with self._lock:
            held = unwanted[self._store.has_row(unwanted)]
            busy = self._touched[held] > self._moves.done
            self._state[unwanted] = State.UNKNOWN
            self._digests.forget(unwanted)
            if busy.any():
                number = int(self._touched[held[busy]].max())
                self._moves.hold(number, self._store.retire(held[busy]))
            self._store.release(held[~busy])

    def forget_all(self) -> None:
        """The same for every block, as when the prefix cache is reset."""
        self.forget(range(self._blocks))

    # Swap-out.

    def save(self) -> int:
        """Copy what was written since the last save to the host; how many blocks that was.

        The device must be done with them. Returns when they have arrived, and only then they count
        as saved. Blocks that are written or forgotten meanwhile are not. Raises KvStoreFullError
        if some are unbacked and there is still no room, and DriverError: what had not arrived by
        then is still to be saved.
        """
        with self._saving:
            try:
                with self._lock:
                    self._check_here()
                    self._reserve(self._unbacked())
                    blocks = np.flatnonzero(self._state == State.WRITTEN)
                    for chunk in in_chunks(blocks, self._chunk):
                        self._move(chunk, to_device=False)
                    number = self._moves.last
                if len(blocks):
                    self._wait(number)
            except BaseException:
                with self._lock:
                    self._state[self._state == State.SAVING] = State.WRITTEN
                    self._moves.uncount()
                raise
            return len(blocks)

    def drain(self) -> None:
        """Wait for everything that is in flight. Raises DriverError."""
        with self._lock:
            number = self._moves.last
        self._wait(number)

    def lost(self) -> None:
        """The device memory goes; what was saved is on the host.

        Raises UsageError, and the memory must stay, if something is in flight or not saved.
        """
        with self._lock:
            if len(self._moves) > 0:
                raise UsageError("KV blocks are in flight: drain before the device memory goes")
            if (unsaved := int(np.count_nonzero(self._state == State.WRITTEN))) > 0:
                raise UsageError(f"{unsaved} KV blocks are not saved: save them first")
            self._state[self._state == State.SAVED] = State.AWAY
            self._queue = NO_BLOCKS
            self._here = False

    # Swap-in.

    def restore(self, first: Iterable[int] = (), rest: Iterable[int] | None = None) -> None:
        """The device memory is there: bring blocks back, those of ``first`` before all others.

        ``rest`` follows behind, a window at a time, at each call of ``require`` or ``advance``; by
        default all that are away. Returns when the first moves are enqueued; what a step needs is
        required by it. Raises UsageError for a store that has become another's, and DriverError;
        whatever did not begin can be required or restored again.
        """
        urgent = as_blocks(first, self._blocks)
        behind = None if rest is None else as_blocks(rest, self._blocks)
        with self._lock:
            self._store.addresses(NO_BLOCKS, self._identity)
            self._here = True
            self._digests.anew()
            self._queue = np.flatnonzero(self._state == State.AWAY) if behind is None else behind
            self._bring(urgent[self._state[urgent] == State.AWAY])
        self.advance()

    def advance(self) -> None:
        """Start on more of what is to be restored, if less than a window is under way."""
        with self._lock:
            self._moves.poll()
            while (room := self._window - self._moves.blocks_to_device) > 0 and len(self._queue):
                chunk = self._queue[: min(self._chunk, room)]
                self._bring(self._digests.sound(chunk[self._state[chunk] == State.AWAY]))
                self._queue = self._queue[len(chunk) :]

    @property
    def settled(self) -> bool:
        """Whether no block has still to come: ``require`` has nothing to wait for."""
        with self._lock:
            return not ((self._state == State.AWAY) | (self._state == State.COMING)).any()

    def statistics(self) -> KvCacheStatistics:
        """Where the blocks are now."""
        with self._lock:
            unbacked, ways = len(self._unbacked()), (self._moves.to_host, self._moves.to_device)
            return KvCacheStatistics.of(self._state, unbacked, self._bytes, *ways)

    def rekey(self, identity: KvIdentity) -> None:
        """Blocks are of ``identity`` from now on. Raises UsageError unless all were forgotten."""
        self.drain()
        with self._lock:
            if self._state.any():
                raise UsageError("KV blocks are kept: forget them before the weights change")
            self._store.rekey(identity)
            self._identity = identity

    def close(self) -> None:
        """Forget everything and give the host memory back; idempotent. Raises DriverError."""
        self.drain()
        self.forget_all()
        self._store.close()
        self._digests.close()

    def _check_here(self) -> None:
        if not self._here:
            raise UsageError("the device memory of the KV blocks is gone: restore them first")

    def _unbacked(self) -> Blocks:
        written = np.flatnonzero(self._state == State.WRITTEN)
        return written[~self._store.has_row(written)]

    def _reserve(self, blocks: Blocks) -> None:
        rowless = blocks[~self._store.has_row(blocks)]
        if len(rowless):
            self._store.reserve(rowless)
            self._touched[rowless] = 0  # by nothing so far

    def _bring(self, blocks: Blocks) -> None:
        for chunk in in_chunks(blocks, self._chunk):
            self._move(chunk, to_device=True)

    def _move(self, blocks: Blocks, *, to_device: bool) -> None:
        rows = self._store.addresses(blocks, self._identity)
        move = self._moves.begin(blocks, to_device=to_device)
        self._touched[blocks] = move.number
        if to_device:
            self._arrives[blocks] = move.number
            self._mover.to_device(blocks, rows)
        else:
            self._mover.to_host(blocks, rows)
        move.digesting = self._digests.begin(blocks, self._mover.stream, to_device=to_device)
        move.mark = self._mover.mark()
        self._state[blocks] = State.COMING if to_device else State.SAVING

    def _arrived(self, move: Move) -> None:
        back = move.to_device
        state, last = (State.COMING, self._arrives) if back else (State.SAVING, self._touched)
        # Not those that were forgotten or written since, or that a later move is about.
        blocks = move.blocks[last[move.blocks] == move.number]
        blocks = blocks[self._state[blocks] == state]
        self._state[blocks] = State.SAVED
        if back:
            self._bytes.restored += len(move.blocks) * self._mover.row_bytes
            wrong = self._digests.wrong(move.digesting, blocks, self._bytes)
            self._state[wrong] = State.AWAY
            self._queue = ahead_of(self._digests.sound(wrong), self._queue)
        else:
            self._bytes.saved += len(move.blocks) * self._mover.row_bytes
            self._digests.saved(move.digesting)

    def _wait(self, number: int) -> None:
        """Return when all moves up to ``number`` have ended. Raises DriverError."""
        with self._lock:
            if self._moves.done >= number:
                return
            mark, reached = self._moves.until(number)
        wait = self._mover.synchronize if mark is None else mark.wait
        try:
            wait()
        except BaseException:
            with self._lock:
                self._moves.uncount()
            raise
        with self._lock:
            self._moves.end(reached)
