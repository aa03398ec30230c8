"""What an engine does as it starts is nothing that anybody asked of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from async_engine import FakeWorker, running, vllm_config

from gpupool.daemon.protocol import Working
from gpupool.vllm import settings, worker
from gpupool.vllm.reporting import Reporter

MIB = 1 << 20
REQUESTS = 5


def _scheduled(new: list[str], finished: set[str]) -> Any:
    """A step of one token for each new request, in a block of its own."""
    return SimpleNamespace(
        total_num_scheduled_tokens=len(new),
        num_scheduled_tokens=dict.fromkeys(new, 1),
        slots={name: ([1 + number], 0) for number, name in enumerate(new)},
        finished_req_ids=finished,
        scheduled_new_reqs=[
            SimpleNamespace(
                req_id=name,
                block_ids=([1 + number],),
                num_computed_tokens=0,
                prompt_token_ids=[7],
            )
            for number, name in enumerate(new)
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[],
            new_block_ids=[],
            num_computed_tokens=[],
            num_output_tokens=[],
            resumed_req_ids=set(),
        ),
    )


class WarmsUp(FakeWorker):
    """As vLLM's second model runner does on GPUs: with requests through the worker's own steps."""

    slept_while_loading: bool | None = None

    def load_model(self) -> None:
        self.slept_while_loading = self.vllm_config.model_config.enable_sleep_mode
        super().load_model()

    def compile_or_warm_up_model(self) -> float:
        names = [f"_warmup_{number}_" for number in range(REQUESTS)]
        assert self.execute_model(_scheduled(names, set())) is None
        self.sample_tokens(None)
        self.execute_model(_scheduled([], set(names)))
        self.synchronize_device()
        return 0.0


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Working]:
    heard: list[Working] = []

    def tell(work: Working) -> bool:
        heard.append(work)
        return True

    monkeypatch.setattr(settings, "_pools", {})
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(settings, "reporter", lambda *_: Reporter(tell))
    return heard


def test_requests_of_a_warm_up_are_neither_kept_nor_told_of(told: list[Working]) -> None:
    pool = {"device": "host", "budget_bytes": 8 * MIB, "page_bytes": 2 * MIB, "model": "a"}
    with running(worker.pooled(WarmsUp), vllm_config(pool), seed=1, requests=0, tokens=1) as engine:
        worker_ = engine.worker
        with worker_.resident():
            cache = worker_._pool_kv._kv.cache
            assert cache.statistics().bytes_saved == 0
        assert told == []
        worker_.execute_model(_scheduled(["asked"], set()))
        worker_.sample_tokens(None)
        worker_.pool_model.swap_out()
        assert cache.statistics().bytes_saved > 0
        assert [name for work in told for _, name, _ in work.began] == ["asked"]


def test_a_model_is_loaded_beside_vllms_own_sleep_mode(told: list[Working]) -> None:
    pool = {"device": "host", "budget_bytes": 8 * MIB, "page_bytes": 2 * MIB, "model": "a"}
    config = vllm_config(pool)
    with running(worker.pooled(WarmsUp), config, seed=1, requests=0, tokens=1) as engine:
        assert engine.worker.slept_while_loading is False
        assert config.model_config.enable_sleep_mode is True
