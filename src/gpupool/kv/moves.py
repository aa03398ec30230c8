"""Moves in flight, and the rows that must wait for them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gpupool.kv.blocks import Blocks, Words
from gpupool.kv.digests import Digesting
from gpupool.kv.mover import Mark
from gpupool.kv.states import UnderWay


@dataclass
class Move:
    """Blocks that were handed to a mover at once."""

    number: int
    blocks: Blocks
    to_device: bool
    digesting: Digesting | None = None  # none of its blocks
    mark: Mark | None = None  # none for what an error left in flight, in part or whole
    counts: bool = True  # as time under way


class MoveList:
    """What was handed to one mover and has not arrived, in order.

    Numbers count up and moves end in the order of their numbers, so that ``done`` says it all.
    For use under the lock of whoever has it.
    """

    def __init__(
        self,
        arrived: Callable[[Move], None],
        free: Callable[[Words], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``arrived`` hears of each whole move once; of what an error left it hears nothing.

        ``free`` gets the rows that nothing touches any more.
        """
        self._clock = clock
        self.to_host, self.to_device = UnderWay(), UnderWay()
        self._arrived = arrived
        self._free = free
        self._moves: deque[Move] = deque()
        self._waiting: deque[tuple[int, Words]] = deque()
        self.last = 0
        """Number of the latest move."""
        self.done = 0
        """All moves up to this number have ended."""

    def __len__(self) -> int:
        return len(self._moves)

    @property
    def blocks_to_device(self) -> int:
        """How many blocks are on their way to the device."""
        return sum(len(move.blocks) for move in self._moves if move.to_device)

    def begin(self, blocks: Blocks, *, to_device: bool) -> Move:
        """A move that is in flight from now on, whatever becomes of it."""
        self.last += 1
        self._moves.append(Move(self.last, blocks, to_device))
        self._way(self._moves[-1]).begins(self._clock())
        return self._moves[-1]

    def hold(self, number: int, rows: Words) -> None:
        """Rows that belong to no block any more and that moves up to ``number`` touch."""
        self._waiting.append((number, rows))

    @property
    def held_until(self) -> int:
        """The move with which the last of the held rows is free; 0 if there are none."""
        return max((number for number, _ in self._waiting), default=0)

    def until(self, number: int) -> tuple[Mark | None, int]:
        """What to wait for, so that all moves up to ``number`` have ended, and the last of those.

        Without a mark the mover itself is to be waited for.
        """
        for move in self._moves:
            if move.number >= number and move.mark is not None:
                return move.mark, move.number
        return None, self.last

    def uncount(self) -> None:
        """After an error nobody looks for a while: what is in flight is under way no longer."""
        for move in self._moves:
            self._stop(move)

    def poll(self) -> None:
        """Find out what has arrived. Raises DriverError; what arrived before is noted."""
        reached = self.done
        try:
            for move in self._moves:
                if move.mark is None:
                    continue
                if not move.mark.done():
                    break
                reached = move.number
        finally:
            self.end(reached)

    def end(self, number: int) -> None:
        """All moves up to ``number`` have ended."""
        while self._moves and self._moves[0].number <= number:
            move = self._moves.popleft()
            self.done = move.number
            self._stop(move)
            if move.mark is not None:
                self._arrived(move)
        for _ in range(len(self._waiting)):
            last, rows = self._waiting.popleft()
            if last <= self.done:
                self._free(rows)
            else:
                self._waiting.append((last, rows))

    def _stop(self, move: Move) -> None:
        if move.counts:
            self._way(move).ended(self._clock())
            move.counts = False

    def _way(self, move: Move) -> UnderWay:
        return self.to_device if move.to_device else self.to_host
