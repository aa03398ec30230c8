"""A model's standing with the arbiter, and what follows from a look at all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpupool.errors import DriverError
from gpupool.schedule.turns import Cool, Residency, Revoke


@dataclass(slots=True)
class Lease:
    """One model's standing with the arbiter."""

    key: int
    name: str
    pages: int = 0
    """What it needs to be resident."""
    early: bool = False
    """As it waits it can use what can be warm as it comes; else it needs all at once."""
    begun: int = 0
    """How many pages it was granted while it waits."""
    hurried: bool = False
    """What it will ask for ahead it waits for already."""
    ahead: bool = False
    """It waits for nothing yet: it wants its memory for later."""
    warmable: int = 0
    """How many pages can stay, or come ahead, while it is out."""
    held: int = 0
    """How many it has now: all, some while it waits for the rest or leaves, or warm ones."""
    keep: int = 0
    """How many it may keep as it leaves."""
    cooling: int = 0
    """How many warm pages it was asked for and has not given back."""
    asked_to_cool: bool = False
    pinned: dict[int, int] = field(default_factory=dict)
    """Pages of others that it will have too, by their places; kept for it as the first in line."""
    state: Residency = Residency.OUT
    since_s: float = 0.0
    used_s: float = 0.0
    idle: bool = True
    expected: bool = False
    """Requests are on their way to it: it is not idle, whatever its engine says."""
    rank: int = 0
    """Its place among those who wait, and among those who may be made to leave; see the policy."""
    turn_ends_s: float | None = None
    """Before that it is not made to leave while it is busy; None: by the arbiter's turns."""
    asked_s: float = 0.0
    fenced: bool = False
    """Its process is gone or going; its pages come back with ``remove``."""
    stays: str = ""
    """Why it could not leave when it was asked last; empty if it could."""
    stays_until_s: float = 0.0
    """When it, or its warm pages, will be asked for again."""


@dataclass(frozen=True)
class Granted:
    """The model may swap in, on these pages and those that it has."""

    key: int
    pages: list[int]
    waited_s: float
    shared: dict[int, int] = field(default_factory=dict)
    """Beside those, pages of others that have what it needs, by their places."""


@dataclass(frozen=True)
class Outcome:
    """What follows from one look at the state."""

    granted: list[Granted] = field(default_factory=list)
    begun: list[Granted] = field(default_factory=list)
    """Those that may begin on these pages and wait for the rest."""
    revoked: list[Revoke] = field(default_factory=list)
    cooled: list[Cool] = field(default_factory=list)
    """Who is to give warm pages back, and how many."""
    failed: list[tuple[int, DriverError]] = field(default_factory=list)
    """Models whose pages the device could not create; they are out again, or leaving if they had
    begun."""
    wake_at_s: float | None = None
