"""An engine that loads as it is told into a pool of either kind, on a host that acts as a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from async_engine import FakeWorker, vllm_config
from torch_memory import TorchMemory
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from benchmarks.pool_process import daemon
from gpupool import Model, Pool
from gpupool._core import RegionArena
from gpupool.daemon.client import DaemonSession
from gpupool.daemon.queries import query_status
from gpupool.vllm import compat, settings, worker

PAGE_BYTES, BUDGET_PAGES = 2 << 20, 4
BUDGET_BYTES = BUDGET_PAGES * PAGE_BYTES
WARM_BYTES = PAGE_BYTES  # what another model keeps of a pool that it had alone
ROOM_BYTES = BUDGET_BYTES - WARM_BYTES
COUNT = PAGE_BYTES // 8  # numbers in a page


@dataclass
class Run:
    """What vLLM does as it loads, and what it met."""

    memory: TorchMemory = field(default_factory=TorchMemory)
    load: Callable[[], Any] = lambda: None
    beside: Callable[[], Any] = lambda: None
    told: list[str] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)

    def module(self, *values: int) -> Any:
        """A model with a page of each of these."""
        module = torch.nn.Module()
        for index, value in enumerate(values):
            weight = torch.nn.Parameter(self.memory.full(COUNT, value), requires_grad=False)
            module.register_parameter(f"weight{index}", weight)
        module.register_buffer("scales", self.memory.full(10, sum(values)))
        return module


run = Run()


@register_model_loader("as-told")
class Loader(BaseModelLoader):  # type: ignore[misc]
    """Has what it loads told by the test."""

    def download_model(self, model_config: Any) -> None:
        raise NotImplementedError

    def load_weights(self, model: Any, model_config: Any) -> None:
        raise NotImplementedError

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
        return run.load() if model_config is vllm_config.model_config else run.module(9)


class Loading(FakeWorker):
    """Loads as vLLM's workers do, and has more made beside the model by its runner."""

    def load_model(self) -> None:
        config = self.vllm_config
        loader = Loader(config.load_config)
        module = loader.load_model(vllm_config=config, model_config=config.model_config)
        self.model_runner = SimpleNamespace(get_model=lambda: module)
        run.told.append(f"runner: {len(run.memory.routed)} routed")
        run.beside()
        # What lives on outside of the model, as V2's sampler does, and a draft.
        draft = loader.load_model(vllm_config=config, model_config=SimpleNamespace())
        run.kept += [run.memory.full(COUNT, 8), draft]


@contextmanager
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The host says that it is one, and torch allocates there as told."""
    global run
    memory, slots = TorchMemory(), RegionArena.slots_taken()
    run = Run(memory)
    gc.freeze()  # vLLM's own objects, which take long to go through
    monkeypatch.setattr(settings, "_pools", {})
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(Model, "device_kind", "cuda")
    everywhere = "gpupool.adopt._on_device"
    monkeypatch.setattr(everywhere, lambda _, tensors: (list(tensors), 0))
    monkeypatch.setattr(Model, "torch_allocator", lambda *given: memory.allocator(*given))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "use_mem_pool", memory.use_mem_pool)
    monkeypatch.setattr(torch.cuda, "empty_cache", memory.empty_cache)
    monkeypatch.setattr(compat, "make_workspaces", lambda: run.told.append("workspaces"))
    yield run
    run.kept.clear()
    run.load = run.beside = lambda: None
    gc.collect()
    gc.unfreeze()
    memory.empty_cache()
    assert RegionArena.slots_taken() == slots


class Pooled:
    """A pool of either kind, and another model that has all of it until somebody wants it."""

    def __init__(self, stack: ExitStack, kind: str, *options: str) -> None:
        sizes = {"budget_bytes": BUDGET_BYTES, "page_bytes": PAGE_BYTES}
        self.path: Path | None = None
        if kind == "embedded":
            self.settings: dict[str, Any] = {"device": "host", **sizes}
            pool = Pool(device="host", **sizes)
            settings._pools["host"] = (
                {name: self.settings.get(name) for name in settings._OF_THE_POOL},
                pool,
            )
            self.pool: Pool | None = pool
        else:
            self.pool = None
            self.path = stack.enter_context(daemon("host", *sizes.values(), *options)).socket_path
            self.settings = {"socket": str(self.path)}
        self.other = self.model("other")
        self.region = self.other.region("runtime", BUDGET_BYTES)
        with self.other.resident():
            torch.from_dlpack(self.region).fill_(5)

    def model(self, name: str) -> Model:
        if self.pool is not None:
            return self.pool.model(name)
        assert self.path is not None
        return Model(name, DaemonSession(self.path, name))

    def engine(self, **more: Any) -> Any:
        config = vllm_config({**self.settings, "model": "a", "loading_bytes": ROOM_BYTES, **more})
        config.model_config = SimpleNamespace(enable_sleep_mode=False)
        config.load_config = SimpleNamespace(load_format="as-told")
        return worker.pooled(Loading)(config, 1)

    def held(self) -> dict[str, int]:
        """The bytes of every model in the pool."""
        if self.pool is not None:
            return {m.name: m.held_bytes for m in self.pool.statistics().models}
        assert self.path is not None
        return {model.name: model.held_bytes for model in query_status(self.path).models}

    def states(self) -> dict[str, str]:
        """Of each model, of a daemon's."""
        assert self.path is not None
        return {model.name: model.state for model in query_status(self.path).models}

    def check(self, engine: Any) -> None:
        """Nothing is left of a room, and the other model comes back as it was."""
        assert set(self.held()) == {"other", "a"}
        with self.other.resident():
            assert bool((torch.from_dlpack(self.region) == 5).all())
        assert self.held() == {"other": BUDGET_BYTES, "a": 0}
        assert run.memory.routed == []
        assert "load_model" in vars(Loader)
        assert Loader.load_model.__qualname__ == "Loader.load_model"
        engine.pool_model.close()
        self.other.close()
