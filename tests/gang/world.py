"""Gangs on devices that hold one model each, with every choice of order left to the caller.

What decides is real: ``Leader`` and ``Standing``. Engines, devices and the channels between ranks
and leaders are made up here. A step is a collective operation: it ends in a rank once all ranks of
its gang have begun it.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from gpupool.gang import protocol as g
from gpupool.gang.leader import Leader
from gpupool.gang.standing import Standing

Act = tuple[str, Callable[[], None]]


@dataclass
class Rank:
    """One rank, and the engine that gives it steps."""

    device: int
    standing: Standing
    where: str = "out"  # wanting, queued, here, in, ended
    open: bool = False
    halt: g.Halt | None = None
    """To be obeyed once it had its turn."""
    closed: int = 0
    turns: dict[int, int] = field(default_factory=dict)
    """The last step of each turn that it has left."""
    to_leader: deque[g.RankMessage] = field(default_factory=deque)
    to_rank: deque[g.LeaderMessage] = field(default_factory=deque)


@dataclass
class Gang:
    """An engine of ``steps`` steps; after ``pauses_after`` all ranks give their memory up."""

    leader: Leader
    ranks: list[Rank]
    steps: int
    pauses_after: int = 0
    ended: bool = False
    """With one of its ranks."""


@dataclass
class Device:
    """Room for one; who waits is granted it in order."""

    holder: tuple[int, int] | None = None
    queue: deque[tuple[int, int]] = field(default_factory=deque)
    revoked: bool = False
    alone: int = 0
    """How often a model of this device alone is still to come; it leaves by itself."""


ALONE = (-1, -1)


@dataclass
class World:
    """All of it. Every act changes it; ``acts`` are those that are possible now."""

    gangs: list[Gang]
    devices: list[Device]
    ends: int = 0
    """How many ranks are still to end, whatever they are at."""

    def acts(self) -> list[Act]:
        found: list[Act] = []
        for i, gang in enumerate(self.gangs):
            for r, rank in enumerate(gang.ranks):
                found += self._of_rank(i, r, gang, rank)
        for d, device in enumerate(self.devices):
            if device.alone > 0 and ALONE not in device.queue and device.holder != ALONE:
                found.append((f"device {d}: another comes", partial(self._another, device)))
            if device.holder is None and device.queue:
                found.append((f"device {d}: grants", partial(self._grant, device)))
            if device.holder is not None and device.queue and not device.revoked:
                found.append((f"device {d}: revokes", partial(self._revoke, device)))
        return found

    @property
    def done(self) -> bool:
        """Every engine has had its steps, or given all up, and nobody waits for a device."""
        served = all(
            rank.where in ("out", "ended") if gang.ended else rank.closed == gang.steps
            for gang in self.gangs
            for rank in gang.ranks
        )
        return served and not any(device.queue or device.alone for device in self.devices)

    def copy(self) -> World:
        return copy.deepcopy(self)

    def _of_rank(self, i: int, r: int, gang: Gang, rank: Rank) -> list[Act]:
        name, found = f"gang {i} rank {r}", list[Act]()
        if self.ends > 0 and rank.where != "ended":
            found.append((f"{name}: ends", partial(self._ends, i, r)))
        if rank.to_leader:
            found.append((f"{name}: its leader hears", partial(self._leader_hears, gang, r)))
        if rank.to_rank:
            found.append((f"{name}: hears", partial(self._hears, i, r)))
        if rank.halt is not None:
            found.append((f"{name}: had its turn", partial(self._halts, rank)))
        if rank.standing.broken and rank.where not in ("out", "queued", "ended"):
            found.append((f"{name}: gives up", partial(self._gives_up, rank)))
            return found
        more = not rank.open and not rank.standing.broken and rank.standing.opened < gang.steps
        paused = gang.pauses_after == rank.closed > 0 and rank.closed not in rank.turns.values()
        if rank.where == "out" and more:
            found.append((f"{name}: wants", partial(self._wants, rank)))
        elif rank.where == "in":
            if paused and not rank.open:
                found.append((f"{name}: leaves by itself", partial(self._leave, rank)))
                more = False
            if more and rank.standing.may_open():
                found.append((f"{name}: opens", partial(self._open, rank)))
            if rank.open and all(o.standing.opened >= rank.standing.opened for o in gang.ranks):
                begun = all(o.open or o.closed >= rank.standing.opened for o in gang.ranks)
                if begun:
                    found.append((f"{name}: closes", partial(self._close, rank)))
            if not rank.open and rank.standing.may_leave():
                found.append((f"{name}: leaves", partial(self._leave, rank)))
        return found

    def _leader_hears(self, gang: Gang, r: int) -> None:
        for to, message in gang.leader.heard(r, gang.ranks[r].to_leader.popleft()):
            assert gang.ended or not isinstance(message, g.Broken), message
            if gang.ranks[to].where != "ended":
                gang.ranks[to].to_rank.append(message)

    def _hears(self, i: int, r: int) -> None:
        rank = self.gangs[i].ranks[r]
        match message := rank.to_rank.popleft():
            case g.Come():
                assert rank.where == "wanting"
                rank.where = "queued"
                self.devices[rank.device].queue.append((i, r))
            case g.Go():
                assert rank.where == "here"
                rank.where, rank.open = "in", True
            case g.Halt(hurry_at_s=None):
                self._halted(rank, message)
            case g.Halt():
                rank.halt = message
            case g.Part():
                rank.standing.part(message.turn, message.step)
            case g.Broken():
                rank.standing.broken = message.why
                rank.halt = None
                rank.to_rank.clear()

    def _halts(self, rank: Rank) -> None:
        assert rank.halt is not None
        message, rank.halt = rank.halt, None
        self._halted(rank, message)

    def _halted(self, rank: Rank, message: g.Halt) -> None:
        step = rank.standing.halt(message.turn)
        rank.to_leader.append(g.Halted(message.turn, step))

    def _wants(self, rank: Rank) -> None:
        rank.standing.asks()
        rank.where = "wanting"
        rank.to_leader.append(g.Wants(rank.standing.opened))

    def _open(self, rank: Rank) -> None:
        rank.standing.opened += 1
        rank.open = True

    def _close(self, rank: Rank) -> None:
        rank.open = False
        rank.closed += 1

    def _leave(self, rank: Rank) -> None:
        rank.turns[rank.standing.turn] = rank.closed
        self._let_go(rank)

    def _let_go(self, rank: Rank) -> None:
        if rank.where in ("here", "in"):
            device = self.devices[rank.device]
            device.holder, device.revoked = None, False
        rank.where = "out"

    def _gives_up(self, rank: Rank) -> None:
        """Its gang has ended: what it has goes, and its engine ends the step it is in."""
        rank.open = False
        self._let_go(rank)

    def _ends(self, i: int, r: int) -> None:
        gang = self.gangs[i]
        rank = gang.ranks[r]
        self.ends -= 1
        gang.ended = True
        queue = self.devices[rank.device].queue
        if (i, r) in queue:
            queue.remove((i, r))
        self._gives_up(rank)
        rank.where, rank.halt = "ended", None
        rank.to_rank.clear()
        rank.to_leader.append(g.Failed("it ended"))
        if r == 0:  # and the leader with it
            for other in gang.ranks:
                other.to_leader = deque([] if other is not rank else [g.Failed("it ended")])

    def _another(self, device: Device) -> None:
        device.queue.append(ALONE)
        device.alone -= 1

    def _grant(self, device: Device) -> None:
        device.holder = device.queue.popleft()
        if device.holder == ALONE:
            return
        i, r = device.holder
        rank = self.gangs[i].ranks[r]
        rank.to_leader.append(g.Granted())
        rank.to_leader.append(g.Here())
        rank.where = "here"

    def _revoke(self, device: Device) -> None:
        if device.holder == ALONE:
            device.holder = None
            return
        assert device.holder is not None
        i, r = device.holder
        rank = self.gangs[i].ranks[r]
        device.revoked = True
        rank.to_leader.append(g.Leave(rank.standing.turn, 0.0))


def world_of(
    gangs: int,
    ranks: int,
    steps: int,
    alone: int = 0,
    pauses_after: int = 0,
    ends: int = 0,
    devices_of: Callable[[int], list[int]] | None = None,
    leader: type[Leader] = Leader,
    standing: type[Standing] = Standing,
) -> World:
    """So many gangs on so many devices, on all of them unless ``devices_of`` says on which."""
    devices = [list(devices_of(i) if devices_of else range(ranks)) for i in range(gangs)]
    return World(
        [
            Gang(leader(len(of)), [Rank(d, standing()) for d in of], steps, pauses_after)
            for of in devices
        ],
        [Device(alone=alone) for _ in range(ranks)],
        ends,
    )


def check_end(world: World) -> None:
    """No act is left: everything must be done, and each turn have had the same steps everywhere."""
    assert world.done, "nothing can happen any more, and not everything is done"
    for gang in world.gangs:
        if gang.ended:
            continue
        for other in gang.ranks[1:]:
            both = gang.ranks[0].turns.keys() & other.turns.keys()
            assert all(gang.ranks[0].turns[turn] == other.turns[turn] for turn in both)
