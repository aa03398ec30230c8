"""A worker that has to wait: how long, and what else may happen meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from async_engine import Engine, FakeWorker, running, vllm_config
from vllm.config.offload import OffloadConfig, PrefetchOffloadConfig, UVAOffloadConfig

from gpupool.errors import DoesNotFitError, LeaseTimeoutError, UsageError
from gpupool.vllm import compat, settings, worker

MIB = 1 << 20
PooledWorker = worker.pooled(FakeWorker)


@pytest.fixture(autouse=True)
def fresh_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_pools", {})
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def _config(name: str, pages: int = 3) -> Any:
    embedded = {"device": "host", "budget_bytes": pages * 2 * MIB, "page_bytes": 2 * MIB}
    return vllm_config({**embedded, "model": name})


def test_a_step_waits_no_longer_than_vllm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "step_timeout_s", lambda: 0.05)
    with (
        running(PooledWorker, _config("a"), seed=1, requests=1, tokens=4) as a,
        running(PooledWorker, _config("b"), seed=1, requests=1, tokens=4) as b,
    ):
        with b.worker.resident(), _elsewhere() as run:
            # The holder is in the middle of something, so the wait can only end by its limit.
            with pytest.raises(LeaseTimeoutError):
                run(lambda: _all_tokens(a))
            assert b.worker.pool_model.gate.is_resident
        # Nothing is left half done: both engines go on, except for the step that failed.
        assert _all_tokens(b)
        with a.worker.resident():
            assert not b.worker.pool_model.gate.is_resident


def test_a_rank_behind_the_first_ends_where_a_step_of_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compat, "step_timeout_s", lambda: 0.05)
    with (
        running(PooledWorker, _config("a"), seed=1, requests=1, tokens=4) as a,
        running(PooledWorker, _config("b"), seed=1, requests=1, tokens=4) as b,
    ):
        a.worker._pool_follows = True
        with b.worker.resident(), _elsewhere() as run, pytest.raises(SystemExit) as ended:
            run(lambda: _all_tokens(a))
        assert isinstance(ended.value.__cause__, LeaseTimeoutError)


def test_a_cache_that_is_kept_whole_does_not_go_beyond_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compat, "block_layout", lambda *_: None)
    config = _config("a")
    config.additional_config["gpupool"]["kv_store_bytes"] = 64
    with (
        pytest.raises(UsageError, match="raise kv_store_bytes, which is 64"),
        running(PooledWorker, config, seed=1, requests=1, tokens=4),
    ):
        pass


def test_a_thread_in_a_step_of_one_model_cannot_wait_for_another() -> None:
    with (
        running(PooledWorker, _config("a"), seed=1, requests=1, tokens=4) as a,
        running(PooledWorker, _config("b"), seed=1, requests=1, tokens=4) as b,
    ):
        with b.worker.resident(), pytest.raises(UsageError, match="in whose step it is"):
            a.worker.wake_up()
        a.worker.wake_up()


def _wait_until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


@contextmanager
def _elsewhere() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    with ThreadPoolExecutor(1) as thread:
        yield lambda work: thread.submit(work).result()


def _all_tokens(engine: Engine) -> dict[str, list[int]]:
    while engine.busy:
        engine.step()
    return engine.tokens


def test_a_door_waits_its_turn_beside_a_waiting_step() -> None:
    with (
        running(PooledWorker, _config("a"), seed=1, requests=2, tokens=4) as a,
        running(PooledWorker, _config("b"), seed=1, requests=1, tokens=4) as b,
        ThreadPoolExecutor(2) as threads,
    ):
        gate = a.worker.pool_model.gate
        with b.worker.resident():
            steps = threads.submit(_all_tokens, a)
            _wait_until(lambda: gate._state.value == "arriving")  # a step waits for the lease
            door = threads.submit(a.worker.add_lora, 10)
            _wait_until(lambda: len(gate._changed._waiters) == 1)  # and add_lora for that step
            assert not steps.done()
            assert not door.done()
        assert door.result(60) is True
        assert len(steps.result(60)) == 2


def test_what_a_door_writes_survives_a_swap() -> None:
    with (
        running(PooledWorker, _config("a"), seed=1, requests=1, tokens=4) as a,
        running(PooledWorker, _config("b"), seed=1, requests=1, tokens=4) as b,
    ):
        before = _weight_sum(a)
        assert a.worker.add_lora(10)
        with b.worker.resident():
            assert not a.worker.pool_model.gate.is_resident
        assert _weight_sum(a) == before + 10


def _weight_sum(engine: Engine) -> int:
    with engine.worker.resident():
        return int(engine.worker.model_runner.get_model().weight.sum())


def test_a_model_larger_than_the_budget_is_refused_at_load() -> None:
    pool_worker = PooledWorker(_config("a", pages=1), seed=1)
    with pytest.raises(DoesNotFitError, match=r"needs 4194304 bytes .* budget is 2097152 bytes"):
        pool_worker.load_model()
    pool_worker.shutdown()


def test_a_callable_reaches_the_model_only_through_the_gate() -> None:
    with running(PooledWorker, _config("a"), seed=1, requests=1, tokens=4) as a:
        a.worker.pool_model.swap_out()
        with pytest.raises(UsageError, match=r"with worker.resident\(\)"):
            _ = a.worker.model_runner
        with a.worker.resident():
            a.worker.model_runner.get_model().weight[0] = 12345
        a.worker.pool_model.swap_out()
        with a.worker.resident():
            assert a.worker.model_runner.get_model().weight[0] == 12345


def test_engines_in_processes_of_their_own_cannot_share_an_embedded_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(UsageError, match="VLLM_ENABLE_V1_MULTIPROCESSING=0"):
        PooledWorker(_config("a"), seed=1)


def _offload(config: Any, **given: Any) -> None:
    config.offload_config = OffloadConfig(**given)


def _model(config: Any, **given: Any) -> None:
    config.model_config = SimpleNamespace(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: _offload(c, uva=UVAOffloadConfig(cpu_offload_gb=0.5)), "--cpu-offload-gb"),
        (lambda c: _offload(c, prefetch=PrefetchOffloadConfig(offload_group_size=2)), "-group-"),
        (lambda c: _model(c, sleep_mode_offload_cudagraph=True), "--sleep-mode-offload-cudagraph"),
        (lambda c: _model(c, enable_nccl_comm_suspend=True), "--enable-nccl-comm-suspend"),
        (lambda c: setattr(c, "kv_transfer_config", object()), "KV connectors"),
        (lambda c: setattr(c.cache_config, "kv_offloading_size", 4), "KV connectors"),
        (lambda c: setattr(c.cache_config, "kv_cache_memory_bytes", None), "kv-cache-memory"),
        (lambda c: setattr(c.parallel_config, "data_parallel_size", 2), "data parallel"),
    ],
)
def test_configurations_that_cannot_be_pooled_are_refused(change: Any, message: str) -> None:
    config = _config("a")
    change(config)
    with pytest.raises(UsageError, match=message):
        PooledWorker(config, seed=1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "needs additional_config"),
        ({"gpupool": {"socket": "/x"}}, "model"),
        ({"gpupool": {"socket": "/x", "model": "a", "typo": 1}}, "typo"),
        ({"gpupool": {"device": "host", "model": "a", "budget_bytes": "1G"}}, "budget_bytes"),
    ],
)
def test_settings_are_checked(config: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings.parse(config)


BOTH = ["/run/a.sock", "/run/b.sock"]


@pytest.mark.parametrize(
    ("parallel", "pooled", "message"),
    [
        ({"world_size": 2}, {}, "pipeline parallel"),
        ({"enable_eplb": True}, {}, "leave --enable-eplb out"),
        ({"world_size": 4, "tensor_parallel_size": 2}, {}, "pipeline parallel"),
        ({"world_size": 2, "tensor_parallel_size": 2, "nnodes": 2}, {}, "several machines"),
        ({"world_size": 2, "tensor_parallel_size": 2}, {}, "processes of their own"),
        (
            {"world_size": 2, "tensor_parallel_size": 2},
            {"socket": "/run/a.sock", "model": "a"},
            "names 1 daemons and the engine has 2 ranks",
        ),
        ({}, {"socket": BOTH, "model": "a"}, "names 2 daemons and the engine has 1 ranks"),
        (
            {"world_size": 2, "tensor_parallel_size": 2},
            {"socket": BOTH, "model": "a", "share": True},
            "for engines on one device",
        ),
        (
            {"world_size": 2, "tensor_parallel_size": 2},
            {"socket": BOTH, "model": "a", "kv_store_bytes": 1},
            "for engines on one device",
        ),
        (
            {"world_size": 2, "tensor_parallel_size": 2},
            {"socket": BOTH, "model": "a", "loading_bytes": 1},
            "for engines on one device",
        ),
        (
            {},
            {"socket": "/run/a.sock", "model": "a" * 247, "loading_bytes": 1},
            "has at most 246 characters",
        ),
        (
            {"world_size": 2, "tensor_parallel_size": 2},
            {"socket": BOTH[::-1], "model": "a"},
            "in alphabetical order",
        ),
    ],
)
def test_parallel_engines_that_cannot_be_pooled_are_refused(
    parallel: dict[str, int], pooled: dict[str, Any], message: str
) -> None:
    config = _config("a")
    for name, value in parallel.items():
        setattr(config.parallel_config, name, value)
    if pooled:
        config.additional_config = {"gpupool": pooled}
    with pytest.raises(UsageError, match=message):
        PooledWorker(config, seed=1)
