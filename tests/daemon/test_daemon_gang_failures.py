"""Whatever fails in one rank, and when: its engine ends, and the others never notice."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from daemon_bench import DEADLINE_S, PAGE_BYTES, StartDaemon, until
from gang_bench import PAGES, Engine

from gpupool.daemon.client import DaemonSession
from gpupool.errors import DriverError, GangBrokenError
from gpupool.model import Model

STEPS = 30


class Planted:
    """Fails once, at the call of that number, instead of what was there."""

    def __init__(self, real: Callable[..., Any] | None, at: int) -> None:
        self._real, self._left = real, at

    def __call__(self, *given: Any, **named: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise DriverError("planted", "map", 1)
        return None if self._real is None else self._real(*given, **named)

    @property
    def failed(self) -> bool:
        return self._left <= 0


@pytest.mark.parametrize("where", ["declare", "_arrive", "before_swap_out", "_unmap"])
@pytest.mark.parametrize("rank", range(2))
def test_a_failure_at_any_time_ends_its_engine_alone(
    start_daemon: StartDaemon, directory: Path, where: str, rank: int
) -> None:
    """While three engines take turns on devices of which each has two."""
    daemons = [start_daemon(socket_path=directory / f"{i}.sock", pages=PAGES) for i in range(3)]
    of = [daemons[:2], daemons[1:], [daemons[0], daemons[2]]]
    draw = random.Random(f"{where} {rank}")
    engines = [Engine(on, f"m{i}", min_steps=draw.randrange(3)) for i, on in enumerate(of)]
    residency = engines[0].ranks[rank].model._residency
    planted = Planted(getattr(residency, where), draw.randrange(1, 9))
    setattr(residency, where, planted)

    def run(engine: Engine) -> list[BaseException | None]:
        try:
            return engine.run(STEPS, seed=draw.randrange(9), pauses=True)
        finally:
            engine.close()  # or its memory would be waited for

    with ThreadPoolExecutor(3) as threads:
        ended = list(threads.map(run, engines, timeout=4 * DEADLINE_S))
    assert planted.failed
    assert None not in ended[0], ended
    assert ended[1:] == [[None, None]] * 2
    assert [one.steps for engine in engines[1:] for one in engine.ranks] == [STEPS] * 4
    assert len({one.steps for one in engines[0].ranks}) == 1
    for daemon in daemons:
        until(lambda daemon=daemon: not daemon.status().models)  # type: ignore[misc]
        assert daemon.status().pages_fenced == 0


@pytest.mark.parametrize(("waits", "ends"), [(0, 1), (1, 0), (2, 1), (2, 2)])
def test_who_waits_for_its_device_hears_at_once_that_its_engine_has_ended(
    start_daemon: StartDaemon, directory: Path, waits: int, ends: int
) -> None:
    """Not when it gets that device: whoever has it may keep it for long."""
    daemons = [start_daemon(socket_path=directory / f"{i}.sock", pages=PAGES) for i in range(3)]
    other = Model("other", DaemonSession(daemons[waits].socket_path, "other"))
    other.region("weights", PAGES * PAGE_BYTES)
    engine = Engine(daemons, "m")
    with other.resident(), ThreadPoolExecutor(1) as threads:
        running = threads.submit(engine.run, 1)
        daemons[waits].until_state("m", "waiting")
        engine.ranks[ends].place.close()
        ended = running.result(DEADLINE_S)
        assert {type(error) for error in ended} == {GangBrokenError}, ended
        for daemon in daemons[: waits + 1]:
            daemon.until_state("m", "out")  # and its place in the line is free
    engine.close()
    other.close()
