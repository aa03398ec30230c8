"""When the first rank's turn is over, and what its gate does until then."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ranks_bench import FOR_EVER_S, PATIENCE_S, Ranks, ranks_of

from gpupool.gang.gate import GangGate


def busy(path: Path, **more: Any) -> Any:
    """Ranks whose engine has requests, so that turns have their length."""
    return ranks_of(path / "gang.sock", **({"min_steps": 1000, "pause_s": FOR_EVER_S} | more))


def begin(ranks: Ranks) -> None:
    ranks.all_at_once(lambda gate: gate.set_idle(False))
    ranks.step()


def halting(ranks: Ranks, turn: int, in_s: float = FOR_EVER_S) -> Future[object]:
    """The first rank is asked to halt, and waits to, unless it has halted."""
    gate = ranks.gates[0]
    halts = ranks.beside(lambda: gate.halt(turn, gate._clock() + in_s))
    while gate._revokes.count == 0 and not halts.done():
        time.sleep(0.001)
    return halts


def test_a_turn_ends_where_nothing_happens(tmp_path: Path) -> None:
    with busy(tmp_path, pause_s=0.01) as ranks:
        begin(ranks)
        assert halting(ranks, 1).result(PATIENCE_S) == 1


def test_a_turn_ends_when_time_is_up(tmp_path: Path) -> None:
    with busy(tmp_path) as ranks:
        begin(ranks)
        assert halting(ranks, 1, 0.01).result(PATIENCE_S) == 1
        ranks.all_at_once(lambda gate: gate.set_idle(True))


def test_a_turn_that_has_gone_is_over(tmp_path: Path) -> None:
    with busy(tmp_path) as ranks:
        begin(ranks)
        assert halting(ranks, 0).result(PATIENCE_S) == 0
        ranks.all_at_once(lambda gate: gate.set_idle(True))


def test_nobody_has_a_turn_in_a_gang_that_ended(tmp_path: Path) -> None:
    with busy(tmp_path) as ranks:
        begin(ranks)
        halts = halting(ranks, 1)
        ranks.members[1].hang_up("test")
        assert halts.result(PATIENCE_S) == 1
        ranks.all_at_once(lambda gate: gate.set_idle(True))


def test_who_has_not_come_quite_has_its_turn_first(tmp_path: Path) -> None:
    with busy(tmp_path, min_steps=2) as ranks:
        ranks.all_at_once(lambda gate: gate.set_idle(False))
        ranks.memories[1].may_come.clear()
        steps = ranks.beside(ranks.step)
        while not ranks.memories[0].resident:
            time.sleep(0.001)
        halts = halting(ranks, 1)
        ranks.memories[1].may_come.set()
        steps.result(PATIENCE_S)
        ranks.step()
        assert halts.result(PATIENCE_S) == 2


def test_a_long_step_is_no_pause(tmp_path: Path) -> None:
    now_s = [1000.0]
    with busy(tmp_path, min_steps=2, pause_s=10.0, clock=lambda: now_s[0]) as ranks:
        ranks.all_at_once(lambda gate: gate.set_idle(False))
        opens = [ranks.beside(gate.open_step) for gate in ranks.gates]
        for future in opens:
            future.result(PATIENCE_S)
        now_s[0] += 20
        halts = halting(ranks, 1)
        for gate in ranks.gates:
            gate.close_step()
        ranks.step()
        assert halts.result(PATIENCE_S) == 2


def test_who_leaves_by_itself_waits_for_no_more_than_a_pause(tmp_path: Path) -> None:
    with busy(tmp_path, pause_s=0.01) as ranks:
        begin(ranks)
        assert ranks.all_at_once(GangGate.give_up) == [None, None]


def test_a_step_within_a_step_has_no_number(tmp_path: Path) -> None:
    with busy(tmp_path) as ranks:

        def nested(gate: GangGate) -> None:
            with gate.hold():
                assert gate.halt(gate._standing.turn, None) == gate._standing.opened
                with gate.hold(PATIENCE_S):
                    gate.part(gate._standing.turn, gate._standing.opened)

        for number in range(1, 3):
            assert ranks.all_at_once(nested) == [None, None]
            assert [gate._standing.opened for gate in ranks.gates] == [number] * 2
            for gate in ranks.gates:
                gate.leave(number)


def test_a_torn_rank_may_leave_without_the_others(tmp_path: Path) -> None:
    with busy(tmp_path) as ranks:
        gate = ranks.gates[1]
        gate.cool(1)
        assert ranks.beside(lambda: gate.give_up(FOR_EVER_S, lambda: False)).result(PATIENCE_S)
        begin(ranks)
        ranks.all_at_once(lambda gate: gate.set_idle(True))
