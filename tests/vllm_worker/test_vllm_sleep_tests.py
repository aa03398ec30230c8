"""The tool that runs vLLM's own tests, on tests made up in the places of those."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from variants import write_plain

TOOL = Path(__file__).resolve().parents[2] / "tools" / "vllm_sleep_tests.py"
MEMORY = "basic_correctness/memory"

# In the place of the test that needs no GPU; this machine may have none.
ANYWHERE = """
from vllm import AsyncEngineArgs, LLM
from vllm.device_allocator.sleep_mode_backend import SleepModeBackendFactory


def test_the_backend_is_known():
    assert SleepModeBackendFactory.get_backend_class("gpupool").__name__ == "PoolBackend"


def test_an_engine_is_pooled(gpu_memory_cleared):
    more = {"dtype": "float32", "max_model_len": 64, "block_size": 32, "enforce_eager": True}
    llm = LLM("some/name", **more)
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    model = worker.pool_model
    assert sum(region.bytes for region in model.regions("kv_cache")) == 8 << 20
    assert not model.gate.is_resident
    before = llm.generate({"prompt_token_ids": [3, 4]}, use_tqdm=False)[0].outputs[0].token_ids
    llm.sleep()
    llm.wake_up()
    assert model.swap_ins > 1 and before


def test_arguments_of_asynchronous_engines():
    given = AsyncEngineArgs(model="x", kv_cache_memory_bytes=5)
    assert given.worker_cls == "gpupool.vllm.Worker" and given.kv_cache_memory_bytes == 5
"""
ELSEWHERE = """
import pytest


def test_that_needs_a_gpu():
    raise AssertionError("no GPU was looked for")


@pytest.mark.parametrize("mode", [1, 2])
def {name}(mode):
    raise AssertionError("this does not apply")
"""


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_check_of_a_gpu_wants_one(tmp_path: Path) -> None:
    done = _run("--tree", str(tmp_path), GPUPOOL_REQUIRE_GPU="1")
    assert done.returncode == 2 and done.stdout.splitlines()[-1].startswith("this vLLM runs on cpu")


@pytest.mark.parametrize("is_made", [False, True])
def test_engines_are_pooled_and_what_does_not_apply_is_left_out(
    is_made: bool, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    written = {
        "v1/worker/test_sleep_mode_backend.py": ANYWHERE,
        f"{MEMORY}/sleep_mode/test_sleep_mode.py": ELSEWHERE.format(
            name="test_deep_sleep_lora_tp2"
        ),
        f"{MEMORY}/cumem/test_cumem.py": ELSEWHERE.format(
            name="test_sleep_with_only_weights_asleep"
        ),
    }
    for name, text in written.items():
        path = tree / "tests" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    # As in sources of vLLM: these must not be taken for the one that is installed.
    (tree / "vllm").mkdir()
    (tree / "vllm" / "__init__.py").write_text("raise ImportError('the sources')")
    if is_made:  # what is made up has a tokenizer, and other layers
        text = ANYWHERE.replace('{"prompt_token_ids": [3, 4]}', '"a word"')
        text = text.replace('regions("kv_cache")) == 8', 'regions("kv_cache")) <= 8')
        (tree / "tests/v1/worker/test_sleep_mode_backend.py").write_text(text)
    model = ("--made",) if is_made else ("--model", str(write_plain(tmp_path / "plain")))
    sizes = ("--budget-mib", "512", "--kv-mib", "8", "--device", "host")
    done = _run("--tree", str(tree), *model, *sizes, "--", "--maxfail=9")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "3 passed, 2 skipped, 4 deselected" in done.stdout
    assert "it needs a GPU" in done.stdout
    assert "LEFT OUT test_deep_sleep_lora_tp2: tensor parallel engines take" in done.stdout
    assert "LEFT OUT test_sleep_with_only_weights_asleep: it counts bytes" in done.stdout


def test_a_folder_without_these_tests_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    done = _run("--tree", str(tmp_path))
    assert done.returncode == 2 and "there are none of these tests" in done.stdout
