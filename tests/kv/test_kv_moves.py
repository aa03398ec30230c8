"""How long moves were under way, as whoever looks sees it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpupool.kv.mover import Mark
from gpupool.kv.moves import MoveList


class Arrives(Mark):
    """When the test says so."""

    def __init__(self) -> None:
        self.has = False

    def done(self) -> bool:
        return self.has

    def wait(self) -> None:
        raise AssertionError("nobody waits")


@given(
    st.lists(
        st.tuples(
            st.integers(1, 5),
            st.sampled_from(["to_host", "to_device", "arrives", "poll", "fails", "ends", "error"]),
        ),
        max_size=40,
    )
)
def test_time_counts_once_while_anything_of_a_direction_is_seen_in_flight(
    said: list[tuple[int, str]],
) -> None:
    now_s = 100.0
    moves = MoveList(lambda _: None, lambda _: None, clock=lambda: now_s)
    marks: list[Arrives] = []
    in_flight: dict[int, bool] = {}
    seen: dict[int, bool] = {}  # of these, those begun since the last error
    counted = {False: 0.0, True: 0.0}
    for later_s, what in said:
        for to_device in counted:
            counted[to_device] += later_s * (to_device in seen.values())
        now_s += later_s
        if what in ("to_host", "to_device", "fails"):
            move = moves.begin(np.arange(2), to_device=what == "to_device")
            in_flight[move.number] = seen[move.number] = move.to_device
            if what != "fails":  # else an error has left it without a mark
                marks.append(Arrives())
                move.mark = marks[-1]
        elif what == "arrives" and marks:
            next((mark for mark in marks if not mark.has), marks[0]).has = True
        elif what == "poll":
            moves.poll()
        elif what == "ends":
            moves.end(moves.last)
        elif what == "error":
            moves.uncount()
            seen.clear()
        in_flight = {number: way for number, way in in_flight.items() if number > moves.done}
        seen = {number: way for number, way in seen.items() if number > moves.done}
    assert len(moves) == len(in_flight)
    # What is in flight still is counted once it has ended.
    open_ways = set(seen.values())
    for to_device, way in ((True, moves.to_device), (False, moves.to_host)):
        if to_device not in open_ways:
            assert way.seconds == counted[to_device]
    moves.end(moves.last)
    assert (moves.to_host.seconds, moves.to_device.seconds) == (counted[False], counted[True])
