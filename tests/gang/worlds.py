"""Worlds of gangs to begin with, and what must hold of them."""

from __future__ import annotations

from collections.abc import Callable

from world import Act, Device, Gang, Rank, World

from gpupool.gang.leader import RETREATS, Leader
from gpupool.gang.standing import Standing


def world_of(
    gangs: int,
    ranks: int,
    steps: int,
    alone: int = 0,
    pauses_after: int = 0,
    ends: int = 0,
    again: int = 0,
    patient: bool = False,
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
        [Device(alone=alone, again=again) for _ in range(ranks)],
        ends,
        patient,
    )


def check_now(world: World, acts: list[Act]) -> None:
    """If nothing is left but what devices do: nobody holds one that it was asked for.

    Else it would be killed, when what it waits for is another device. And engines that have ended
    hold none, and are in no line.
    """
    if any(not name.startswith("device") and not name.endswith(": ends") for name, _ in acts):
        return
    for number, device in enumerate(world.devices):
        assert world.patient or not device.revoked, f"{device.holder} is killed for device {number}"
    for gang in world.gangs:
        for rank in gang.ranks:
            assert not rank.standing.broken or rank.where in ("out", "ended"), "it waits in vain"


def check_end(world: World) -> None:
    """No act is left: everything must be done, and each turn have had the same steps everywhere."""
    assert world.done, "nothing can happen any more, and not everything is done"
    for gang in world.gangs:
        if gang.ended:
            continue
        begun = len(gang.ranks[0].turns) + 1
        assert gang.leader.turn <= (RETREATS + 1) * begun, "it makes room for ever"
        for other in gang.ranks[1:]:
            both = gang.ranks[0].turns.keys() & other.turns.keys()
            assert all(gang.ranks[0].turns[turn] == other.turns[turn] for turn in both)
