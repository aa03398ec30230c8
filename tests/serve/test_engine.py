"""Supervision of an engine, against a fake engine and a fake pool."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import anyio
import httpx
import pytest
from fake_pool import query_status
from waiting import is_running, until_async

from gpupool.serve.engine import Engine
from gpupool.serve.failures import EngineFailedError
from gpupool.serve.launch import Launch
from gpupool.serve.lifecycle import Phase, RestartPolicy
from gpupool.serve.pool_daemon import PoolDaemon

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


class FakePool:
    """The part of PoolDaemon that an engine uses."""

    def __init__(self, directory: Path) -> None:
        self._socket_path = directory / "daemon.sock"
        self._socket_path.touch()

    @property
    def latest(self) -> object:
        return query_status(self._socket_path)

    async def refresh(self) -> object:
        return self.latest


class Bench:
    """An engine under test, with a clock and a back-off that the test moves."""

    def __init__(
        self, directory: Path, client: httpx.AsyncClient, options: tuple[str, ...]
    ) -> None:
        self.directory = directory
        self.now_s = 0.0
        self.slept_s: list[float] = []
        self.phases: list[Phase] = []
        self.details: list[str] = []
        self.engine = Engine(
            "a",
            Launch(
                command=lambda port: [
                    *(sys.executable, str(FAKE_ENGINE), "a", str(port), str(directory)),
                    *options,
                ],
                environment=os.environ,
                log_path=directory / "log",
            ),
            client=client,
            pool=cast(PoolDaemon, FakePool(directory)),
            turn=anyio.Lock(),
            on_progress=self._on_progress,
            policy=RestartPolicy(first_delay_s=1.0, max_delay_s=8.0, max_restarts=3),
            start_timeout_s=60.0,
            clock=lambda: self.now_s,
            sleep=self._sleep,
        )

    def pid(self, role: str) -> int:
        return int((self.directory / f"a.{role}").read_text())

    async def _sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        self.now_s += delay_s

    def _on_progress(self, name: str, phase: Phase, detail: str) -> None:
        self.details.append(detail)
        if not self.phases or self.phases[-1] is not phase:
            self.phases.append(phase)


def bench(directory: Path, *options: str, then: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            made = Bench(directory, client, options)
            try:
                with anyio.fail_after(60):
                    await then(made)
            finally:
                await made.engine.stop(0)

    anyio.run(main)


def test_starts_measures_and_stops(tmp_path: Path) -> None:
    async def then(bench: Bench) -> None:
        assert bench.engine.phase is Phase.QUEUED
        await bench.engine.start()
        report = bench.engine.report()
        assert (report.state, report.restarts, report.detail) == ("ready", 0, "")
        assert (report.pid, report.worker_pid) == (bench.pid("server"), bench.pid("worker"))
        assert report.cold_start_s is not None
        await bench.engine.stop(10)
        assert bench.phases == [Phase.STARTING, Phase.READY]
        assert bench.engine.phase is Phase.STOPPED
        assert not is_running(bench.pid("server")) and not is_running(bench.pid("worker"))

    bench(tmp_path, then=then)


@pytest.mark.parametrize("victim", ["server", "worker"])
def test_a_death_of_either_process_restarts_both(tmp_path: Path, victim: str) -> None:
    async def then(bench: Bench) -> None:
        await bench.engine.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.engine.supervise)
            for restarts in (1, 2):
                server, worker = bench.pid("server"), bench.pid("worker")
                os.kill(bench.pid(victim), signal.SIGKILL)
                await until_async(
                    lambda wanted=restarts: (
                        bench.engine.report().restarts == wanted
                        and bench.engine.phase is Phase.READY
                    )
                )
                assert not is_running(server) and not is_running(worker)
                assert is_running(bench.pid("server")) and is_running(bench.pid("worker"))
            tasks.cancel_scope.cancel()
        assert bench.slept_s == [1.0, 2.0]

    bench(tmp_path, "deaf", then=then)


def test_a_killed_worker_is_noticed_without_the_health_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpupool.serve.engine._HEALTH_PERIOD_S", 3600.0)

    async def then(bench: Bench) -> None:
        await bench.engine.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.engine.supervise)
            worker = bench.pid("worker")
            os.kill(worker, signal.SIGKILL)
            await until_async(lambda: bench.engine.report().restarts == 1)
            tasks.cancel_scope.cancel()
        ended = f"its worker, process {worker}, has ended (log: {tmp_path}/state/"
        assert any(detail.startswith(ended) for detail in bench.details)

    bench(tmp_path, then=then)


def test_an_unhealthy_engine_is_restarted(tmp_path: Path) -> None:
    async def then(bench: Bench) -> None:
        await bench.engine.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.engine.supervise)
            (tmp_path / "unhealthy").touch()
            await until_async(lambda: Phase.BACKING_OFF in bench.phases)
            (tmp_path / "unhealthy").unlink()
            await until_async(lambda: bench.phases.count(Phase.READY) == 2)
            tasks.cancel_scope.cancel()

    bench(tmp_path, "unhealthy", then=then)


def test_an_engine_found_unsound_is_restarted_without_delay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpupool.serve.engine._HEALTH_PERIOD_S", 3600.0)

    async def then(bench: Bench) -> None:
        await bench.engine.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.engine.supervise)
            assert await bench.engine.is_sound()
            (tmp_path / "unhealthy").touch()
            assert not await bench.engine.is_sound()
            await until_async(lambda: bench.engine.phase is not Phase.READY)
            (tmp_path / "unhealthy").unlink()
            await until_async(lambda: bench.phases.count(Phase.READY) == 2)
            assert await bench.engine.is_sound()
            tasks.cancel_scope.cancel()

    bench(tmp_path, "unhealthy", then=then)


def test_an_engine_that_cannot_come_up_again_fails_for_good(tmp_path: Path) -> None:
    async def then(bench: Bench) -> None:
        await bench.engine.start()
        os.kill(bench.pid("server"), signal.SIGKILL)
        await bench.engine.supervise()
        report = bench.engine.report()
        assert (report.state, report.restarts) == ("failed", 3)
        assert bench.slept_s == [1.0, 2.0, 4.0]
        assert "failed for good" in report.detail
        assert "ValueError: the weights are no good" in report.detail.splitlines()[-1]
        assert report.pid is None

    bench(tmp_path, "broken-later", then=then)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("refused", r"^model 'a' cannot start: a needs 9 bytes, not 8$"),
        ("broken", r"^model 'a' cannot start: ValueError: the weights are no good \(log: .*\)$"),
    ],
)
def test_a_first_start_that_fails_says_why(tmp_path: Path, option: str, says: str) -> None:

    async def then(bench: Bench) -> None:
        with pytest.raises(EngineFailedError, match=says):
            await bench.engine.start()
        assert bench.engine.phase is Phase.FAILED
        assert not is_running(bench.pid("server"))

    bench(tmp_path, option, then=then)


def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async def then(bench: Bench) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.engine.start)
            await until_async((tmp_path / "a.server").exists)
            tasks.cancel_scope.cancel()
        await bench.engine.stop(0)
        assert not is_running(bench.pid("server"))

    bench(tmp_path, "deaf", then=then)


def test_an_engine_outside_the_pool_is_not_accepted(tmp_path: Path) -> None:
    async def then(bench: Bench) -> None:
        async def pass_time() -> None:
            await until_async((tmp_path / "a.server").exists)
            while True:
                await anyio.sleep(0.05)
                bench.now_s += 1.0

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pass_time)
            with pytest.raises(EngineFailedError, match="has not joined the pool"):
                await bench.engine.start()
            tasks.cancel_scope.cancel()

    bench(tmp_path, "outside", then=then)
