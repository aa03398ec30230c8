"""Run vLLM's own tests of sleep mode and its allocator with every engine in a pool of gpupool.

    python tools/vllm_sleep_tests.py [--tree FOLDER] [--model FOLDER | --made] [-- OF PYTEST]

They are those of the version that is installed, whose sources are fetched once, and are never part
of this tree; --tree names sources that are there, for a machine without network (its tests will do:
tools/vllm_python.py --tests fetches them). The tests name models of the network: --model has all of
them use one checkpoint that is here, --made a small one with a tokenizer that is made up. Utilities
import anthropic, openai, requests, httpx and cloudpickle.

Each engine gets gpupool's worker, a pool of its own in its process, and a size for its KV cache,
whatever else the test asks for. Tests that ask for what a pooled engine has not are left out, with
the reason. Without a GPU only those run that need none, and none with GPUPOOL_REQUIRE_GPU=1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Its engine runs in the process that has the pool. Before vLLM is imported, and whatever a test
# starts has it too.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"  # compiled, or fetched, when it is first used

import pytest
from vllm_python import fetched

ROOT = Path(__file__).resolve().parents[1]
ANYWHERE = "v1/worker/test_sleep_mode_backend.py"  # needs no GPU
SLEEP = ("basic_correctness/memory/sleep_mode/test_sleep_mode.py", "basic_correctness/test_mem.py")
ALLOCATOR = "basic_correctness/memory/cumem/test_cumem.py"  # of 0.26 they are in test_mem.py
_COUNTS = "it counts bytes in vLLM's allocator, which has none of a pooled engine's"
LEFT_OUT = {
    "test_sleep_cudagraph_pool": _COUNTS,
    "test_sleep_cudagraph_pool_aiter_fused_ar_group_quant": _COUNTS,
    "test_release_kv_cache_memory_preserves_generation": _COUNTS,
    "test_sleep_with_only_weights_asleep": _COUNTS,
    "test_deep_sleep_lora_tp2": "tensor parallel engines take daemons, one for each device",
    "test_deep_sleep_compressed_tensors_kv_scales": "it sends a callable that reaches for the model"
    " outside of worker.resident(), which pooled workers refuse",
}


class Pooled:
    """Has every engine of a pytest run join a pool, and says which tests are left out, and why."""

    def __init__(self, additional: dict[str, Any], kv_bytes: int, model: str | None) -> None:
        self._additional, self._kv_bytes, self._model = additional, kv_bytes, model
        self._left_out: list[str] = []

    def pytest_configure(self) -> None:
        """Before anything of vLLM is used."""
        from vllm.engine.arg_utils import EngineArgs

        from gpupool.vllm import plugin

        plugin.register()
        settle: Callable[[Any], None] = EngineArgs.__post_init__

        def settled(arguments: Any) -> None:  # of LLM(...) and of AsyncEngineArgs(...) alike
            arguments.worker_cls = "gpupool.vllm.Worker"
            arguments.additional_config = {"gpupool": self._additional}
            if arguments.kv_cache_memory_bytes is None:
                arguments.kv_cache_memory_bytes = self._kv_bytes
            if self._model is not None:
                arguments.model = self._model
            settle(arguments)

        EngineArgs.__post_init__ = settled

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Leave out what does not apply, and skip what cannot run here."""
        from vllm.platforms import current_platform

        kept, gone = [], []
        for item in items:
            if item.originalname in LEFT_OUT:
                gone.append(item)
                continue
            if not current_platform.is_cuda() and not item.path.match(ANYWHERE):
                item.add_marker(pytest.mark.skip(reason="it needs a GPU and vLLM's build for it"))
            kept.append(item)
        config.hook.pytest_deselected(items=gone)
        items[:] = kept
        self._left_out = sorted({item.originalname for item in gone})

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Which were left out."""
        for name in self._left_out:
            terminalreporter.line(f"LEFT OUT {name}: {LEFT_OUT[name]}")

    @pytest.fixture
    def gpu_memory_cleared(self) -> None:
        """For GPUs of another make; vLLM's own are among much that these tests do not need."""


def main() -> int:
    """As pytest ends; 2 where there are no such tests, or no GPU is there that must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tree", type=Path, help="sources of vLLM, with its folder tests")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", type=Path, help="a checkpoint in place of all that are named")
    which.add_argument("--made", action="store_true", help="one that is made up in their place")
    parser.add_argument("--device", help="of the pool (default: cuda, or host for vLLM on a CPU)")
    parser.add_argument("--budget-mib", type=int, default=4096, help="(default: 4096)")
    parser.add_argument("--kv-mib", type=int, default=512, help="(default: 512)")
    parser.add_argument("pytest", nargs="*", help="passed on to pytest, behind --")
    given = parser.parse_args()
    if given.model or given.made:  # before vLLM is imported: nothing is to be looked for elsewhere
        os.environ["HF_HUB_OFFLINE"] = "1"
    from vllm import __version__
    from vllm.platforms import current_platform

    if os.environ.get("GPUPOOL_REQUIRE_GPU") == "1" and not current_platform.is_cuda():
        print(f"this vLLM runs on {current_platform.device_type or 'nothing here'}: no GPU")
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        tree = given.tree or fetched(__version__.partition("+")[0], Path(scratch))
        if tree is None:
            print("the sources of vLLM could not be fetched: name a folder of them with --tree")
            return 2
        # Alone, since the folder above is put in front of all modules, and has a vLLM of its own.
        tests = Path(scratch, "alone", "tests")
        shutil.copytree(tree / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
        files = [str(tests / f) for f in (ANYWHERE, *SLEEP, ALLOCATOR) if (tests / f).is_file()]
        if len(files) < 2:
            print(f"there are none of these tests in {tree}: is it the sources of vLLM 0.26 or on?")
            return 2
        additional = {
            "model": "tested",
            "device": given.device or ("cuda" if current_platform.is_cuda() else "host"),
            "budget_bytes": given.budget_mib << 20,
        }
        checkpoint = _made(Path(scratch, "model")) if given.made else given.model
        model = None if checkpoint is None else str(checkpoint.resolve())
        alone = ["--noconftest", "-p", "no:cacheprovider", "-c", os.devnull, "-rs"]
        return pytest.main(
            [*alone, "--rootdir", str(tests.parent), *given.pytest, *files],
            plugins=[Pooled(additional, given.kv_mib << 20, model)],
        )


def _made(path: Path) -> Path:
    """A Llama with random weights, of 64 elements a head as GPUs' kernels want, and a tokenizer."""
    sys.path.append(str(ROOT))
    from demo.checkpoints import DEMO_SPECS, write_checkpoint

    sys.path.remove(str(ROOT))  # it has a folder `tests` too
    write_checkpoint(path, DEMO_SPECS["llama-small"])
    return path


if __name__ == "__main__":
    sys.exit(main())
