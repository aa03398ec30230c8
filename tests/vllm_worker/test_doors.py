"""Every public method of the installed vLLM's workers is classified, and treated accordingly."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("vllm")

from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker as GpuWorker

from gpupool.vllm import doors
from gpupool.vllm.worker import PoolWorker, Worker, pooled

_KINDS = [doors.STEP, doors.LIFECYCLE, doors.READS, doors.WRITES, doors.FREE]
_OVERRIDES = {"__init__", "__module__", "__doc__", "__dict__", "__weakref__", "__annotations__"}


@pytest.mark.parametrize("platform_worker", [CPUWorker, GpuWorker])
def test_every_public_method_is_classified(platform_worker: type) -> None:
    worker = pooled(platform_worker)
    public = {name for name in dir(worker) if not name.startswith("_")} - {"model_runner"}
    classified = frozenset().union(*_KINDS)
    assert public - classified == set()


def test_no_method_is_classified_twice() -> None:
    assert sum(len(kind) for kind in _KINDS) == len(frozenset().union(*_KINDS))


def test_doors_are_gated() -> None:
    for name in doors.READS | doors.WRITES:
        if hasattr(CPUWorker, name):
            assert inspect.unwrap(getattr(Worker, name)) is inspect.unwrap(getattr(CPUWorker, name))


def test_names_of_ours_are_clear_of_vllm() -> None:
    mixed_in = [each for each in PoolWorker.__mro__ if each.__module__.startswith("gpupool")]
    assert len(mixed_in) > 1
    ours = {name for each in mixed_in for name in vars(each) if name not in _OVERRIDES}
    taken = {name for name in ours if hasattr(GpuWorker, name)}
    meant = doors.STEP | doors.LIFECYCLE | {"_maybe_get_memory_pool_context", "synchronize_device"}
    assert taken - meant == set()
