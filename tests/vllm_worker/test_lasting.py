"""What an engine says takes longer than a step, so that no daemon kills it for that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

pytest.importorskip("vllm")

from async_engine import FakeWorker, running, vllm_config

from gpupool.embedded.session import EmbeddedSession
from gpupool.vllm import compat, settings, worker

MIB = 1 << 20
STEP_TIMEOUT_S = 100.0


class Recorder(FakeWorker):
    """Notes of each method how long steps may take as it runs."""

    now_s: ClassVar[list[float]]
    seen: ClassVar[dict[str, list[float]]]

    @staticmethod
    def note(name: str) -> None:
        Recorder.seen.setdefault(name, []).append(max(Recorder.now_s, default=0.0))

    def load_model(self) -> None:
        self.note("load_model")
        super().load_model()

    def determine_available_memory(self) -> int:
        self.note("determine_available_memory")
        return super().determine_available_memory()

    def initialize_from_config(self, config: Any) -> None:
        self.note("initialize_from_config")
        super().initialize_from_config(config)

    def compile_or_warm_up_model(self) -> float:
        self.note("compile_or_warm_up_model")
        return super().compile_or_warm_up_model()

    def execute_model(self, scheduled: Any) -> Any:
        self.note("execute_model")
        return super().execute_model(scheduled)

    def add_lora(self, rank: int) -> bool:
        self.note("add_lora")
        return super().add_lora(rank)

    def compute_weight_checksums(self) -> None:
        self.note("compute_weight_checksums")

    def execute_dummy_batch(self) -> None:
        self.note("execute_dummy_batch")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    @contextmanager
    def lasting(_: EmbeddedSession, step_s: float) -> Iterator[None]:
        Recorder.now_s.append(step_s)
        try:
            yield
        finally:
            Recorder.now_s.remove(step_s)

    monkeypatch.setattr(settings, "_pools", {})
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(EmbeddedSession, "lasting", lasting)
    monkeypatch.setattr(compat, "step_timeout_s", lambda: STEP_TIMEOUT_S)
    monkeypatch.setattr(Recorder, "seen", {}, raising=False)
    monkeypatch.setattr(Recorder, "now_s", [], raising=False)
    return Recorder.seen


def _config() -> Any:
    pool = {"device": "host", "budget_bytes": 8 * MIB, "page_bytes": 2 * MIB, "model": "a"}
    return vllm_config(pool)


def test_a_start_lasts_and_steps_do_not(seen: dict[str, list[float]]) -> None:
    with running(worker.pooled(Recorder), _config(), seed=1, requests=1, tokens=4) as engine:
        while engine.busy:
            engine.step()
        started = dict(seen)
        steps = started.pop("execute_model")
        assert set(steps) == {0.0}
        # Others may wait for so long that those who wait for it do not give up before.
        assert set(started) == {
            *("load_model", "determine_available_memory"),
            *("initialize_from_config", "compile_or_warm_up_model"),
        }
        assert all(told == [pytest.approx(0.64 * STEP_TIMEOUT_S)] for told in started.values())


def test_doors_that_read_or_write_much_last(seen: dict[str, list[float]]) -> None:
    with running(worker.pooled(Recorder), _config(), seed=1, requests=1, tokens=4) as engine:
        engine.worker.add_lora(1)
        engine.worker.compute_weight_checksums()
        engine.worker.execute_dummy_batch()
        with engine.worker.resident():
            Recorder.note("resident")
        assert Recorder.now_s == []
    for name in ("add_lora", "compute_weight_checksums", "resident"):
        assert seen[name] == [pytest.approx(0.64 * STEP_TIMEOUT_S)]
    assert seen["execute_dummy_batch"] == [0.0]  # one step


def test_no_longer_than_an_engine_may_take_to_be_ready(
    seen: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "start_timeout_s", lambda: 7.0)
    with running(worker.pooled(Recorder), _config(), seed=1, requests=1, tokens=4):
        assert seen["load_model"] == [7.0]
