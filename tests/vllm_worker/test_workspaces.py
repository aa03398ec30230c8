"""Engines of one process each have scratch memory for layers, by vLLM's own manager of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakSet, ref

import pytest

torch = pytest.importorskip("torch")
workspace = pytest.importorskip("vllm.v1.worker.workspace")

from async_engine import FakeWorker, vllm_config  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.v1.worker import gpu_worker  # noqa: E402
from vllm.v1.worker.workspace import (  # noqa: E402
    current_workspace_manager,
    lock_workspace,
)

from gpupool.errors import BehindGateError  # noqa: E402
from gpupool.vllm import compat, settings, worker  # noqa: E402
from gpupool.vllm.compat import workspaces  # noqa: E402
from gpupool.vllm.compat.workspaces import OwnWorkspaces  # noqa: E402

CPU = torch.device("cpu")
MIB = 1 << 20
WAIT_S = 30


def patch_names(monkeypatch: pytest.MonkeyPatch, manager: Any) -> None:
    """All that may be replaced is as it was after the test."""
    monkeypatch.setattr(workspace, "_manager", manager)
    for module, name in (
        (workspace, "init_workspace_manager"),
        (workspace, "reset_workspace_manager"),
        (gpu_worker, "init_workspace_manager"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(workspaces, "_known", WeakSet())
    monkeypatch.setattr(workspaces, "_outside", OwnWorkspaces())
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)


def prepare_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(type(current_platform), "is_cuda", lambda _: True)
        patch.setattr(type(current_platform), "is_cpu", lambda _: False)
        compat.prepare_process(vllm_config({}))


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_names(monkeypatch, None)
    prepare_on_cuda(monkeypatch)


def scratch(size_bytes: int) -> Any:
    """As layers take it, by the name that they have imported."""
    return current_workspace_manager().get_simultaneous(((size_bytes,), torch.uint8))[0]


def started(size_bytes: int) -> tuple[OwnWorkspaces, int]:
    """An engine whose layers have so much, locked, and its address."""
    own = OwnWorkspaces()
    with own:
        gpu_worker.init_workspace_manager(CPU, 1)
        address = int(scratch(size_bytes).data_ptr())
        lock_workspace()
    return own, address


def elsewhere(call: Callable[[], Any]) -> Any:
    """On a thread that is inside of no engine."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(call).result(WAIT_S)


@pytest.mark.usefixtures("apart")
def test_an_engine_that_starts_takes_nothing_from_another() -> None:
    first, address = started(MIB)
    held = ref(first.manager._current_workspaces[0])
    second, other = started(1 << 10)
    with first:
        assert held() is not None and scratch(MIB).data_ptr() == address != other
        with second:  # as where one engine waits for another's device
            assert scratch(1 << 10).data_ptr() == other
            with pytest.raises(AssertionError, match="locked"):
                scratch(MIB)
        assert scratch(MIB).data_ptr() == address


@pytest.mark.usefixtures("apart")
def test_a_lock_is_of_one_alone() -> None:
    first, _ = started(1 << 10)
    second = OwnWorkspaces()
    with second:
        workspace.init_workspace_manager(CPU, 1)
        scratch(1 << 10)
        assert scratch(MIB).numel() == MIB and not current_workspace_manager().is_locked()
    with first:
        assert current_workspace_manager().is_locked()
        workspace.unlock_workspace()
        assert scratch(MIB).numel() == MIB
    with second:
        lock_workspace()
    assert not first.manager.is_locked()


@pytest.mark.usefixtures("apart")
def test_two_threads_find_each_their_engine_s() -> None:
    engines = [started(MIB), started(MIB)]
    both_inside = threading.Barrier(2, timeout=WAIT_S)

    def addresses(of: OwnWorkspaces) -> set[int]:
        found = set()
        for _ in range(20):
            with of:
                both_inside.wait()
                found.add(int(scratch(MIB).data_ptr()))
                both_inside.wait()
        return found

    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(addresses, own) for own, _ in engines]
        assert [each.result(WAIT_S) for each in found] == [{address} for _, address in engines]


@pytest.mark.usefixtures("apart")
def test_an_engine_that_ends_takes_its_own_alone() -> None:
    (first, _), (second, address) = started(MIB), started(MIB)
    held = ref(first.manager._current_workspaces[0])
    with first:
        workspace.reset_workspace_manager()
        with pytest.raises(AssertionError, match="not initialized"):
            scratch(1)
    assert held() is None
    with second:
        assert scratch(MIB).data_ptr() == address


@pytest.mark.usefixtures("apart")
def test_a_thread_of_vllm_s_own_finds_the_only_one_there_is() -> None:
    with pytest.raises(AssertionError, match="not initialized"):
        elsewhere(lambda: scratch(1))
    first, address = started(MIB)
    with first:
        assert elsewhere(lambda: scratch(MIB).data_ptr()) == address
        second, other = started(MIB)
        with pytest.raises(BehindGateError, match=r"2 engines .* process of its own"):
            elsewhere(lambda: scratch(1))
        workspace.reset_workspace_manager()
    assert elsewhere(lambda: scratch(MIB).data_ptr()) == other
    del second
    with pytest.raises(AssertionError, match="not initialized"):
        elsewhere(lambda: scratch(1))


def test_an_engine_outside_of_the_pool_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_names(monkeypatch, workspace.WorkspaceManager(CPU, 1))
    address = scratch(MIB).data_ptr()
    prepare_on_cuda(monkeypatch)
    prepare_on_cuda(monkeypatch)  # of a second pooled engine
    assert scratch(MIB).data_ptr() == address
    workspace.reset_workspace_manager()
    with pytest.raises(AssertionError, match="not initialized"):
        scratch(1)


def test_a_process_without_a_gpu_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_names(monkeypatch, None)
    compat.prepare_process(vllm_config({}))
    assert workspace._manager is None


class WithScratch(FakeWorker):
    """Takes and gives up its layers' scratch memory where CUDA's worker does."""

    def init_device(self) -> None:
        self.device = CPU
        gpu_worker.init_workspace_manager(CPU, num_ubatches=1)
        scratch(MIB)
        lock_workspace()

    def check_health(self) -> int:
        return int(scratch(MIB).data_ptr())

    def shutdown(self) -> None:
        workspace.reset_workspace_manager()


@pytest.fixture
def engines(apart: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    monkeypatch.setattr(settings, "_pools", {})
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    embedded = {"device": "host", "budget_bytes": 6 * MIB, "page_bytes": 2 * MIB}
    kind = worker.pooled(WithScratch)
    made = [kind(vllm_config({**embedded, "model": name}), seed=1) for name in "ab"]
    for each in made:
        each.init_device()
        each.load_model()
    yield made
    made[1].shutdown()


def test_methods_of_a_worker_and_its_residents_find_its_own(engines: list[Any]) -> None:
    first, second = engines
    address, other = first.check_health(), second.check_health()
    assert address != other and first.check_health() == address
    with first.resident():
        assert scratch(MIB).data_ptr() == address
    first.shutdown()
    assert second.check_health() == other
