"""What several GPUs of one engine add up with: NCCL alone, which keeps no addresses of the pool."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import vllm.envs as envs
from vllm.config.compilation import CompilationConfig
from vllm.distributed.device_communicators import flashinfer_all_reduce
from vllm.platforms import current_platform

from gpupool.vllm import compat
from gpupool.vllm.compat import platform

NAMES = (
    "VLLM_ALLREDUCE_USE_SYMM_MEM",
    "VLLM_USE_NCCL_SYMM_MEM",
    "VLLM_ALLREDUCE_USE_FLASHINFER",
    "VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC",
)


@pytest.fixture(autouse=True)
def all_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, where all are asked for."""
    for name in (*NAMES, "NCCL_GRAPH_REGISTER"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(flashinfer_all_reduce, "get_fi_ar_workspace", lambda **_: "a workspace")
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda _: True)
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: False)
    monkeypatch.setattr(platform, "keep_workspaces_apart", lambda: None)


def prepared(ranks: int) -> Any:
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(world_size=ranks, disable_custom_all_reduce=False),
        compilation_config=CompilationConfig(),
    )
    config.compilation_config.pass_config.fuse_allreduce_rms = True
    compat.prepare_process(config)
    return config


def used() -> set[str]:
    """As vLLM reads its environment."""
    return {name for name in NAMES if envs.environment_variables[name]()}


def test_of_several_ranks_none_is_left() -> None:
    config = prepared(ranks=2)
    assert used() == set() and platform.os.environ["NCCL_GRAPH_REGISTER"] == "0"
    assert config.parallel_config.disable_custom_all_reduce
    assert config.compilation_config.pass_config.fuse_allreduce_rms is False
    assert flashinfer_all_reduce.get_fi_ar_workspace(world_size=2) is None


def test_of_one_rank_all_are_as_they_were() -> None:
    config = prepared(ranks=1)
    assert used() == set(NAMES)
    assert not config.parallel_config.disable_custom_all_reduce
    assert config.compilation_config.pass_config.fuse_allreduce_rms
    assert flashinfer_all_reduce.get_fi_ar_workspace(world_size=1) == "a workspace"


def test_a_name_that_this_vllm_does_not_know_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = NAMES[-1]
    monkeypatch.delitem(envs.environment_variables, unknown)
    monkeypatch.delenv(unknown)
    prepared(ranks=2)
    assert unknown not in platform.os.environ
