"""Where one rank of a gang stands: which steps it may begin, and when it may leave."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Standing:
    """Not thread safe: a gate's lock guards it."""

    turn: int = 0
    """The turn that it is in, or left last, or asks for."""
    opened: int = 0
    """The last step that has begun, or that its turn is asked for."""
    came_for: int = 0
    """The first step of the turn."""
    halted_at: int | None = None
    """No step after this one begins."""
    parts_after: int | None = None
    """It leaves once this one has closed."""
    stays: int = 0
    """The last turn of which it was told to keep the memory though it has not begun."""
    broken: str = ""
    """Why the gang has ended, if it has: no step begins, and it may leave at any time."""

    def asks(self) -> None:
        """It is out, and asks for a turn, for its next step."""
        self.turn += 1
        self.opened += 1
        self.came_for = self.opened
        self.halted_at = self.parts_after = None

    def asks_anew(self) -> None:
        """It asks for another turn instead, for the same step: the last one did not begin."""
        self.turn += 1

    def may_open(self) -> bool:
        """Whether the next step of a rank that is there may begin."""
        return not self.broken and (self.halted_at is None or self.opened < self.halted_at)

    def halt(self, turn: int) -> int:
        """Begin no step of that turn for now; the last one that has begun."""
        if turn != self.turn:  # it has left, and asks for the next
            return self.came_for - 1
        self.halted_at = self.opened
        return self.opened

    def part(self, turn: int, step: int) -> bool:
        """Go on up to ``step`` and leave; False if it has left that turn already."""
        if turn != self.turn:
            return False
        self.halted_at = self.parts_after = step
        return True

    def may_leave(self) -> bool:
        """Whether one without an open step may leave, as far as the gang is concerned."""
        parts = self.parts_after is not None and self.opened >= self.parts_after
        return parts or bool(self.broken)
