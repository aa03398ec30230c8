"""Gangs on devices that hold one model each, with every choice of order left to the caller.

What decides is real: ``Leader`` and ``Standing``. Engines, devices and the channels between ranks
and leaders are made up here. A step is a collective operation: it ends in a rank once all ranks of
its gang have begun it.
"""

from __future__ import annotations

import pickle
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
    back: bool = False
    """It is to give up what it has, and to ask anew."""
    has_waited: bool = False
    """Its lease was revoked, and it said that the turn had not begun so far."""
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
    """Who holds it is killed if it neither leaves nor says that it stays."""
    stays: bool = False
    """Who holds it said so; it is asked ``again`` so many times on this device."""
    again: int = 0
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
    patient: bool = False
    """Devices wait for as long as it takes: nobody is to say that it has waited."""

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
            asks = not device.revoked and (not device.stays or device.again > 0)
            if device.holder is not None and device.queue and asks:
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
        return pickle.loads(pickle.dumps(self))  # in a tenth of the time of copy.deepcopy

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
        if rank.standing.broken and rank.where not in ("out", "ended"):
            found.append((f"{name}: gives up", partial(self._gives_up, i, r)))
            return found
        if rank.back:
            found.append((f"{name}: goes back", partial(self._goes_back, i, r)))
        asked = rank.where == "here" and self.devices[rank.device].revoked
        if asked and not self.patient and not rank.has_waited:
            found.append((f"{name}: has waited", partial(self._has_waited, rank)))
        more = not rank.open and not rank.standing.broken and rank.standing.opened < gang.steps
        paused = gang.pauses_after == rank.closed > 0 and rank.closed not in rank.turns.values()
        if rank.where == "out" and more:
            found.append((f"{name}: wants", partial(self._wants, rank)))
        elif rank.where == "in":
            if paused and not rank.open:
                found.append((f"{name}: leaves by itself", partial(self._leave, i, r)))
                more = False
            if more and rank.standing.may_open():
                found.append((f"{name}: opens", partial(self._open, rank)))
            if rank.open and all(o.standing.opened >= rank.standing.opened for o in gang.ranks):
                begun = all(o.open or o.closed >= rank.standing.opened for o in gang.ranks)
                if begun:
                    found.append((f"{name}: closes", partial(self._close, rank)))
            if not rank.open and rank.standing.may_leave():
                found.append((f"{name}: leaves", partial(self._leave, i, r)))
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
            case g.Back():
                assert rank.where in ("wanting", "queued", "here")
                rank.back = True
            case g.Ask():
                rank.to_leader.append(g.Waits(message.turn))
            case g.Stay():
                assert rank.where == "here"
                device = self.devices[rank.device]
                assert device.revoked and message.turn == rank.standing.turn
                device.revoked, device.stays, rank.has_waited = False, True, False
            case g.Go():
                assert rank.where == "here" and not rank.back
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

    def _has_waited(self, rank: Rank) -> None:
        rank.has_waited = True
        rank.to_leader.append(g.Retreat(rank.standing.turn))

    def _goes_back(self, i: int, r: int) -> None:
        rank = self.gangs[i].ranks[r]
        self._let_go(i, r)
        rank.where = "wanting"
        rank.standing.asks_anew()
        rank.to_leader.append(g.Wants(rank.standing.opened))

    def _open(self, rank: Rank) -> None:
        rank.standing.opened += 1
        rank.open = True

    def _close(self, rank: Rank) -> None:
        rank.open = False
        rank.closed += 1

    def _leave(self, i: int, r: int) -> None:
        rank = self.gangs[i].ranks[r]
        rank.turns[rank.standing.turn] = rank.closed
        self._let_go(i, r)

    def _let_go(self, i: int, r: int) -> None:
        rank = self.gangs[i].ranks[r]
        device = self.devices[rank.device]
        if device.holder == (i, r):
            device.holder, device.revoked, device.stays = None, False, False
        if (i, r) in device.queue:
            device.queue.remove((i, r))
        rank.where, rank.back, rank.has_waited = "out", False, False

    def _gives_up(self, i: int, r: int) -> None:
        """Its gang has ended: what it has goes, and its engine ends the step it is in."""
        self.gangs[i].ranks[r].open = False
        self._let_go(i, r)

    def _ends(self, i: int, r: int) -> None:
        gang = self.gangs[i]
        rank = gang.ranks[r]
        self.ends -= 1
        gang.ended = True
        self._gives_up(i, r)
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
        if device.stays:
            device.stays, device.again = False, device.again - 1
        i, r = device.holder
        rank = self.gangs[i].ranks[r]
        device.revoked = True
        rank.to_leader.append(g.Leave(rank.standing.turn, 0.0))
