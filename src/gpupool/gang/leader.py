"""What a gang's leader decides: a state machine without clock or I/O.

Leases are asked for in the order of ranks, each once the rank before has its own, and every gang's
ranks lie on devices in the same order. So a gang that holds one device waits only for later ones,
and gangs cannot deadlock.

A gang whose device is wanted elsewhere while it waits for another gives up what it has, all ranks
together, and asks anew. It does so once: then it keeps what it gets until its turn has begun, so
that gangs cannot make room for each other for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpupool.gang import protocol as g

Said = tuple[int, g.LeaderMessage]
RETREATS = 1  # of a gang before it has a turn


@dataclass
class Leader:
    """Of one gang; ``heard`` returns what is to be said to which rank."""

    ranks: int
    turn: int = 0
    together: bool = False
    """All are here, and none has been told to leave."""
    broken: str = ""
    """Why the gang has ended, if it has."""
    wanted: dict[int, int] = field(default_factory=dict)
    """The step that each rank which is out wants to begin."""
    granted: int = 0
    here: set[int] = field(default_factory=set)
    retreats: int = 0
    """Since a turn began."""
    goes_back: bool = False
    """What is said of the turn is of no use any more, but what is wanted anew."""
    stay: set[int] = field(default_factory=set)
    """Who is to be told to keep its memory, once all have said that they are there."""
    waits: set[int] = field(default_factory=set)
    """Who has said so."""
    hurry_at_s: float | None = None
    """Somebody is to leave in this turn, which may be cut short then."""
    halting: bool = False
    halted: dict[int, int] = field(default_factory=dict)

    def heard(self, rank: int, message: g.RankMessage) -> list[Said]:
        """A rank said something. What it cannot have meant ends the gang."""
        if self.broken:
            return []
        match message:
            case g.Wants():
                return self._wants(rank, message.step)
            case g.Granted():
                return self._granted(rank)
            case g.Here():
                return self._here(rank)
            case g.Leave():
                return self._leave(message)
            case g.Retreat():
                return self._retreat(rank, message)
            case g.Waits():
                return self._waits(rank, message)
            case g.Halted():
                return self._halted(rank, message)
            case g.Failed():
                return self.breaks(f"rank {rank} failed: {message.why}")
            case _:
                return self.breaks(f"rank {rank} said {type(message).__name__} out of turn")

    def breaks(self, why: str) -> list[Said]:
        """The gang ends; everybody hears it once."""
        if self.broken:
            return []
        self.broken = g.reason(why)
        return self._to_all(g.Broken(self.broken))

    def _wants(self, rank: int, step: int) -> list[Said]:
        if rank in self.wanted:
            return self.breaks(f"rank {rank} wants two turns at once")
        if self.turn > 0 and not self.goes_back and not self._has_begun():
            return self.breaks(f"rank {rank} wants a turn before the last one began")
        self.wanted[rank] = step
        self.together = False  # it has left, and so will the others
        if len(self.wanted) < self.ranks:
            return []
        if len(set(self.wanted.values())) > 1:
            return self.breaks(f"ranks are at different steps: {sorted(self.wanted.items())}")
        self.turn += 1
        self.granted = 0
        self.wanted, self.here, self.halted = {}, set(), {}
        self.stay, self.goes_back = set(), False
        self.hurry_at_s, self.halting = None, False
        return [(0, g.Come(self.turn))]

    def _granted(self, rank: int) -> list[Said]:
        if self._is_late(rank):
            return []
        if rank != self.granted or self.turn == 0:
            return self.breaks(f"rank {rank} has a lease out of turn")
        self.granted += 1
        return [(self.granted, g.Come(self.turn))] if self.granted < self.ranks else []

    def _here(self, rank: int) -> list[Said]:
        if self._is_late(rank):
            return []
        if rank >= self.granted or rank in self.here:
            return self.breaks(f"rank {rank} arrived out of turn")
        self.here.add(rank)
        if len(self.here) < self.ranks:
            return []
        self.together, self.retreats = True, 0
        return [*self._to_all(g.Go(self.turn)), *self._halt()]

    def _has_begun(self) -> bool:
        return len(self.here) == self.ranks

    def _is_late(self, rank: int) -> bool:
        """Whether it has not heard yet that it is to go back."""
        return self.goes_back and rank not in self.wanted

    def _retreat(self, rank: int, message: g.Retreat) -> list[Said]:
        if message.turn != self.turn or self._has_begun() or self.goes_back:
            return []
        if self.retreats < RETREATS:
            self.retreats += 1
            self.goes_back = True
            return self._to_all(g.Back(self.turn))
        # It keeps what it has for those who wait elsewhere. Who does not run waits for ever.
        first = not self.stay
        self.stay.add(rank)
        self.waits = {rank} if first else self.waits | {rank}
        others = [other for other in range(self.ranks) if other != rank]
        return [(other, g.Ask(self.turn)) for other in others] if first else []

    def _waits(self, rank: int, message: g.Waits) -> list[Said]:
        if message.turn != self.turn or self._has_begun():
            return []
        self.waits.add(rank)
        if len(self.waits) < self.ranks:
            return []
        told, self.stay = sorted(self.stay), set()
        return [(one, g.Stay(self.turn)) for one in told]

    def _leave(self, message: g.Leave) -> list[Said]:
        if message.turn != self.turn or self.halting:
            return []  # it has ended, or others said so
        first = message.hurry_at_s if self.hurry_at_s is None else self.hurry_at_s
        self.hurry_at_s = min(first, message.hurry_at_s)
        return self._halt()

    def _halt(self) -> list[Said]:
        if not self.together or self.hurry_at_s is None or self.halting:
            return []
        self.halting = True
        return [(0, g.Halt(self.turn, self.hurry_at_s))]

    def _halted(self, rank: int, message: g.Halted) -> list[Said]:
        if message.turn != self.turn or not self.halting:
            return []
        first = not self.halted
        if first is not (rank == 0) or rank in self.halted:
            return self.breaks(f"rank {rank} halted out of turn")
        self.halted[rank] = message.step
        if first:
            return [(other, g.Halt(self.turn)) for other in range(1, self.ranks)]
        if len(self.halted) < self.ranks:
            return []
        # Who is behind goes on up to the one who is ahead, since that one waits for it.
        return self._to_all(g.Part(self.turn, max(self.halted.values())))

    def _to_all(self, message: g.LeaderMessage) -> list[Said]:
        return [(rank, message) for rank in range(self.ranks)]
