"""A pooled worker that is put to sleep and woken, as vLLM's executor asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from async_engine import Engine, FakeWorker, running, vllm_config
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from vllm.device_allocator.sleep_mode_backend import SleepModeBackendFactory
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.executor.abstract import Executor

from gpupool.errors import UsageError
from gpupool.vllm import plugin, settings, worker
from gpupool.vllm.sleep_backend import PoolBackend

MIB = 1 << 20
PooledWorker = worker.pooled(FakeWorker)
LEVELS = st.sampled_from([1, 2])


@pytest.fixture(autouse=True)
def fresh_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_pools", {})
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def _config(name: str) -> Any:
    embedded = {"device": "host", "budget_bytes": 6 * MIB, "page_bytes": 2 * MIB}
    return vllm_config({**embedded, "model": name})


class Asked:
    """vLLM's own executor, as far as sleep goes, over one worker."""

    is_sleeping = Executor.is_sleeping
    sleep = Executor.sleep
    wake_up = Executor.wake_up
    discard = Executor.discard

    def __init__(self, worker: Any) -> None:
        self.sleeping_tags: set[str] = set()
        self._worker = worker

    def collective_rpc(self, method: str, args: tuple[Any, ...] = (), kwargs: Any = None) -> None:
        getattr(self._worker, method)(*args, **(kwargs or {}))


class Sleeping(RuleBasedStateMachine):
    """Two engines in a pool of one; one of them is asked to sleep and to wake by parts."""

    def __init__(self) -> None:
        super().__init__()
        settings._pools.clear()
        self.stack = contextlib.ExitStack()
        enter = self.stack.enter_context
        self.a, self.b = (
            enter(running(PooledWorker, _config(name), seed=1, requests=1, tokens=4))
            for name in "ab"
        )
        self.asked = Asked(self.a.worker)
        self.sum = self.added = 0
        self.sum = _weight_sum(self.a)

    @rule(level=LEVELS)
    def sleep(self, level: int) -> None:
        self.asked.sleep(level)

    @rule(level=LEVELS)
    def sleep_again(self, level: int) -> None:
        """As by collective_rpc, which asks no executor."""
        if "weights" in self.asked.sleeping_tags:
            self.a.worker.sleep(level)
            self.asked.sleeping_tags |= {"kv_cache"}

    @rule(tags=st.sampled_from([None, [], ["weights"], ["kv_cache"], ["kv_cache", "weights"]]))
    def wake_up(self, tags: list[str] | None) -> None:
        self.asked.wake_up(tags)

    @rule()
    def release_kv_cache(self) -> None:
        self.asked.discard(("kv_cache",))

    @rule()
    def other_engine(self) -> None:
        assert _weight_sum(self.b) > 0

    @rule()
    def write(self) -> None:
        """As a weight update does."""
        if "weights" in self.asked.sleeping_tags:
            with pytest.raises(UsageError, match="is asleep: wake it up first"):
                self.a.worker.add_lora(10)
        else:
            self.a.worker.add_lora(10)
            self.added += 10

    @rule(tags=st.sampled_from([["scheduling"], ["weights", "runtime"], ["x"]]))
    def unknown_tags(self, tags: list[str]) -> None:
        for refuses in (self.a.worker.wake_up, self.a.worker.discard):
            with pytest.raises(UsageError, match="there is no memory tagged"):
                refuses(tags)

    @rule(level=st.sampled_from([-1, 0, 3]))
    def unknown_level(self, level: int) -> None:
        with pytest.raises(UsageError, match="use 1 or 2"):
            self.a.worker.sleep(level)

    @rule()
    def discard_weights(self) -> None:
        with pytest.raises(UsageError, match="does not discard its weights"):
            self.a.worker.discard(("kv_cache", "weights"))

    @invariant()
    def what_vllm_takes_to_be_asleep_is(self) -> None:
        model, backend = self.a.worker.pool_model, self.a.worker.sleep_mode_backend
        asleep = bool(self.asked.sleeping_tags)
        assert backend.state() == ("SUSPENDED" if asleep else "RUNNING")
        if "weights" in self.asked.sleeping_tags:
            assert not model.gate.is_resident
            with pytest.raises(UsageError, match="is asleep"), self.a.worker.resident():
                pass
        elif not asleep:
            assert _weight_sum(self.a) == self.sum + self.added

    def teardown(self) -> None:
        self.stack.close()


Sleeping.TestCase.settings = hypothesis_settings(
    max_examples=30, stateful_step_count=20, deadline=None
)
TestSleeping = Sleeping.TestCase


def _weight_sum(engine: Engine) -> int:
    with engine.worker.resident():
        return int(engine.worker.model_runner.get_model().weight.sum())


def _tokens(engine: Engine) -> dict[str, list[int]]:
    while engine.busy:
        engine.step()
    return engine.tokens


@contextlib.contextmanager
def _engine(name: str) -> Iterator[Engine]:
    with running(PooledWorker, _config(name), seed=3, requests=3, tokens=8) as engine:
        yield engine


@pytest.mark.parametrize("leaves_first", [False, True])
def test_sleep_saves_no_block_and_keeps_no_copy_of_one(leaves_first: bool) -> None:
    with _engine("a") as engine:
        assert _tokens(engine)
        cache = engine.worker._pool_kv._kv.cache
        if leaves_first:
            engine.worker.pool_model.swap_out()
        before = cache.statistics()
        assert before.away > 0 if leaves_first else before.written > 0
        engine.worker.sleep(1)
        engine.worker.wake_up()
        after = cache.statistics()
        assert (after.written, after.saved, after.away, after.coming) == (0, 0, 0, 0)
        assert after.bytes_saved == before.bytes_saved
        assert after.bytes_restored == before.bytes_restored


def test_a_wake_up_that_fails_leaves_the_engine_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    with _engine("a") as engine:
        engine.worker.sleep(1)
        residency = engine.worker.pool_model._residency

        def refuse(*_: Any) -> Any:
            raise UsageError("no device")

        with monkeypatch.context() as patch:
            patch.setattr(residency._session, "acquire", refuse)
            with pytest.raises(UsageError, match="no device"):
                engine.worker.wake_up()
        assert engine.worker.sleep_mode_backend.state() == "SUSPENDED"
        with pytest.raises(UsageError, match="is asleep"), engine.worker.resident():
            pass
        engine.worker.wake_up()
        assert engine.worker.sleep_mode_backend.state() == "RUNNING"
        assert _tokens(engine)


def test_vllm_knows_the_backend_by_name() -> None:
    plugin.register()
    plugin.register()
    assert SleepModeBackendFactory.get_backend_class("gpupool") is PoolBackend
    made = SleepModeBackendFactory.create_backend(SimpleNamespace(sleep_mode_backend="gpupool"))
    assert made.state() == "RUNNING"
    assert PoolBackend.preserves_communicators() and not PoolBackend.supports_durable_storage()
    # For a worker of vLLM's own, whose memory is in no pool.
    for call in (lambda: made.suspend(1), made.resume, lambda: made.discard(("kv_cache",))):
        with pytest.raises(UsageError, match=r"add --worker-cls gpupool\.vllm\.Worker"):
            call()
    assert made.state() == "RUNNING"


def test_the_backend_can_be_named_where_vllm_lets_it() -> None:
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    if "--sleep-mode-backend" not in parser.format_help():
        pytest.skip("vLLM has no --sleep-mode-backend before 0.33")
    given = parser.parse_args(["--model", "m", "--sleep-mode-backend", "gpupool"])
    assert EngineArgs.from_cli_args(given).sleep_mode_backend == "gpupool"
