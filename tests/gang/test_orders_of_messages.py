"""Whatever the order in which ranks, leaders and devices act: everybody gets on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import pytest
from world import World
from worlds import check_end, check_now, world_of

from gpupool.gang import protocol as g
from gpupool.gang.leader import Leader, Said
from gpupool.gang.standing import Standing


def digest_of(world: World) -> bytes:
    return hashlib.blake2b(repr(world).encode(), digest_size=16).digest()


def explore(start: World, most: int = 400_000) -> int:
    """Every state that can be reached, each once; how many there are.

    None is reached twice by one order: so every order ends, and with everything done.
    """
    numbers = {digest_of(start): 0}
    left = [(0, start)]
    follow: list[list[int]] = [[]]
    while left:
        this, world = left.pop()
        acts = world.acts()
        check_now(world, acts)
        if not acts:
            check_end(world)
        for number in range(len(acts)):
            after = world.copy() if number < len(acts) - 1 else world
            after.acts()[number][1]()
            key = digest_of(after)
            if key not in numbers:
                assert len(numbers) < most
                numbers[key] = len(numbers)
                follow.append([])
                left.append((numbers[key], after))
            follow[this].append(numbers[key])
    check_no_order_goes_on_for_ever(follow)
    return len(numbers)


def check_no_order_goes_on_for_ever(follow: list[list[int]]) -> None:
    before = [0] * len(follow)
    for after in follow:
        for number in after:
            before[number] += 1
    left, passed = [0], 0
    while left:
        passed += 1
        for number in follow[left.pop()]:
            before[number] -= 1
            if before[number] == 0:
                left.append(number)
    assert passed == len(follow), "an order comes back to where it was"


def run(world: World, seed: int) -> int:
    """One order, drawn; how many turns there were."""
    draw = random.Random(seed)
    # Some are slow: their acts come a hundred times more seldom.
    slow = f"gang {draw.randrange(4)} rank {draw.randrange(4)}"
    said = []
    try:
        for _ in range(100_000):
            acts = world.acts()
            check_now(world, acts)
            if not acts:
                break
            weights = [0.01 if name.startswith(slow) else 1.0 for name, _ in acts]
            name, act = draw.choices(acts, weights)[0]
            said.append(name)
            act()
        check_end(world)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}, after {said[-20:]}") from None
    return sum(gang.leader.turn for gang in world.gangs)


@pytest.mark.parametrize(
    "shape",
    [
        {"gangs": 1, "ranks": 2, "steps": 3, "alone": 1},
        {"gangs": 1, "ranks": 2, "steps": 2, "alone": 1, "pauses_after": 1, "again": 1},
        {"gangs": 2, "ranks": 2, "steps": 2, "patient": True},
        {"gangs": 2, "ranks": 2, "steps": 1},
        {"gangs": 1, "ranks": 2, "steps": 1, "alone": 1, "ends": 1},
    ],
    ids=str,
)
def test_in_every_order_there_is(shape: dict[str, Any]) -> None:
    states = explore(world_of(**shape))
    print(f"{shape}: {states} states")
    assert states > 1000


# Of gangs that share some devices, in different numbers of ranks.
CHAIN = [[0, 1], [1, 2], [0, 1, 2], [0, 2]]


def chained(gang: int) -> list[int]:
    return CHAIN[gang]


@pytest.mark.parametrize(
    "shape",
    [
        {"gangs": 3, "ranks": 3, "steps": 8, "alone": 3},
        {"gangs": 2, "ranks": 4, "steps": 12, "alone": 2, "pauses_after": 5, "again": 2},
        {"gangs": 4, "ranks": 2, "steps": 10, "alone": 4, "again": 9},
        {"gangs": 4, "ranks": 3, "steps": 8, "alone": 3, "again": 3, "devices_of": chained},
        {"gangs": 4, "ranks": 3, "steps": 8, "alone": 3, "patient": True, "devices_of": chained},
    ],
    ids=lambda shape: " ".join(f"{key}={shape[key]}" for key in shape if key != "devices_of"),
)
def test_in_drawn_orders(shape: dict[str, Any]) -> None:
    turns = [run(world_of(**shape), seed) for seed in range(120)]
    print(f"{shape}: {sum(turns)} turns")
    assert sum(turns) > 120 * 3 * shape["gangs"]  # they did take turns


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_that_ends_at_any_moment_ends_its_engine_alone(ranks: int) -> None:
    shape = {"gangs": 3, "ranks": ranks, "steps": 6, "alone": 2, "ends": 1}
    for seed in range(100):
        run(world_of(**shape), seed)
    for seed in range(100):
        run(world_of(gangs=4, ranks=3, steps=6, alone=2, ends=2, devices_of=chained), seed)


class FirstRankDecides(Leader):
    """All leave after the step at which the first rank is."""

    def _halted(self, rank: int, message: g.Halted) -> list[Said]:
        said = super()._halted(rank, message)
        return [
            (to, g.Part(m.turn, self.halted[0]) if isinstance(m, g.Part) else m) for to, m in said
        ]


class AllAtOnce(Leader):
    """No rank waits for another's lease, so that devices see gangs in different orders."""

    def _wants(self, rank: int, step: int) -> list[Said]:
        said = super()._wants(rank, step)
        if said and isinstance(said[0][1], g.Come):
            self.granted = self.ranks
            return self._to_all(g.Come(self.turn))
        return said

    def _granted(self, rank: int) -> list[Said]:
        return []


class GoesOn(Standing):
    """Begins further steps while it is asked at which it is."""

    def halt(self, turn: int) -> int:
        at = super().halt(turn)
        self.halted_at = None
        return at


class LeavesAtOnce(Standing):
    """Leaves as soon as it hears that it is to leave."""

    def may_leave(self) -> bool:
        return self.parts_after is not None


class NeverRetreats(Leader):
    """What it has it keeps without a word while it waits for more."""

    def _retreat(self, rank: int, message: g.Retreat) -> list[Said]:
        return []


class RetreatsForEver(Leader):
    """It makes room each time that it is asked to."""

    def _retreat(self, rank: int, message: g.Retreat) -> list[Said]:
        self.retreats = 0
        return super()._retreat(rank, message)


class HoldsOn(Leader):
    """It tells only the ranks before the one that is waited for to go back."""

    def _retreat(self, rank: int, message: g.Retreat) -> list[Said]:
        said = super()._retreat(rank, message)
        return [(to, m) for to, m in said if not isinstance(m, g.Back) or to < self.granted]


class TellsNobody(Leader):
    """Of an end of the gang."""

    def breaks(self, why: str) -> list[Said]:
        super().breaks(why)
        return []


PLANTED: dict[str, dict[str, Any]] = {
    "the first rank decides": {"leader": FirstRankDecides},
    "all ask at once": {"leader": AllAtOnce, "patient": True},
    "a rank goes on": {"standing": GoesOn},
    "a rank leaves at once": {"standing": LeavesAtOnce},
    "nobody retreats": {"leader": NeverRetreats},
    "a gang retreats for ever": {"leader": RetreatsForEver},
    "not all go back": {"leader": HoldsOn},
    "an end is not told": {"leader": TellsNobody, "ends": 1},
    "devices in different orders": {"devices_of": lambda i: [0, 1] if i else [1, 0]},
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_mistake_is_found(planted: str) -> None:
    shape = {"gangs": 2, "ranks": 2, "steps": 6, "alone": 2, "again": 2}
    found = 0
    for seed in range(100):
        try:
            run(world_of(**shape, **PLANTED[planted]), seed)
        except AssertionError:
            found += 1
    print(f"{planted}: found in {found} of 100 orders")
    assert found > 0


def _heard(*said: tuple[int, g.RankMessage]) -> list[Said]:
    leader = Leader(2)
    last: list[Said] = []
    for rank, message in said:
        last = leader.heard(rank, message)
    return last


BEGUN: list[tuple[int, g.RankMessage]] = [
    *((rank, g.Wants(1)) for rank in range(2)),
    *((rank, message) for rank in range(2) for message in (g.Granted(), g.Here())),
]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([(0, g.Wants(1)), (0, g.Wants(1))], "two turns at once"),
        ([(0, g.Wants(1)), (1, g.Wants(2))], "different steps"),
        ([*BEGUN[:2], (0, g.Granted()), (0, g.Wants(2))], "before the last one began"),
        ([(0, g.Granted())], "lease out of turn"),
        ([*BEGUN[:2], (1, g.Granted())], "lease out of turn"),
        ([*BEGUN[:2], (0, g.Here())], "arrived out of turn"),
        ([*BEGUN, (0, g.Leave(1, 0.0)), (1, g.Halted(1, 1))], "halted out of turn"),
        ([*BEGUN, (0, g.Leave(1, 0.0)), (0, g.Halted(1, 1)), (0, g.Halted(1, 1))], "out of turn"),
        ([(1, g.Failed("no memory"))], "rank 1 failed: no memory"),
        ([(1, g.Join(1, 0, 2))], "Join out of turn"),
    ],
)
def test_what_a_rank_cannot_have_meant_ends_the_gang(
    said: list[tuple[int, g.RankMessage]], why: str
) -> None:
    last = _heard(*said)
    assert [rank for rank, _ in last] == [0, 1]
    for _, message in last:
        assert isinstance(message, g.Broken)
        assert why in message.why


def test_nobody_wants_the_place_of_a_turn_that_begins() -> None:
    parted: list[tuple[int, g.RankMessage]] = [
        *BEGUN,
        (1, g.Leave(1, 5.0)),
        *((rank, g.Halted(1, 1)) for rank in range(2)),
    ]
    assert _heard(*parted) == [(rank, g.Part(1, 1)) for rank in range(2)]
    again = [*parted, *((rank, g.Wants(2)) for rank in range(2)), *BEGUN[2:]]
    assert _heard(*again) == [(rank, g.Go(2)) for rank in range(2)]
    assert _heard(*again, (0, g.Leave(2, 1.0)), (0, g.Halted(1, 1))) == []  # of the turn before


def test_an_ended_gang_says_nothing_more() -> None:
    leader = Leader(2)
    assert len(leader.heard(0, g.Failed("x"))) == 2
    assert leader.heard(1, g.Wants(1)) == []
    assert leader.breaks("again") == []


def test_a_late_leave_or_halted_is_of_no_turn_any_more() -> None:
    assert _heard(*BEGUN, (0, g.Leave(0, 0.0))) == []
    assert _heard(*BEGUN, (0, g.Halted(1, 1))) == []
    first: Callable[[], list[Said]] = lambda: _heard(*BEGUN, (1, g.Leave(1, 2.5)))  # noqa: E731
    assert first() == [(0, g.Halt(1, 2.5))]
    assert _heard(*BEGUN, (1, g.Leave(1, 2.5)), (0, g.Leave(1, 0.0))) == []
