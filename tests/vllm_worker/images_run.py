"""Real vLLM engines, one after the other in one process, and what they say of images.

Usage: images_run.py, with a list of starts as JSON on standard input; see ``start``. Prints for
each the tokens that it answered with and what was logged, as JSON on the last line.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

import vllm._custom_ops as custom_ops
from vllm import LLM, SamplingParams

from gpupool.vllm import compat, image_loader, pool_worker
from gpupool.vllm.destination import Room

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


class Told(Room):
    """A room that says what it is told, and whether the engine's model has its memory then."""

    def __init__(self, model: Any) -> None:
        self.told: list[str] = []
        self._model = model

    def begin(self) -> None:
        """Said, and as without a room."""
        self.told.append("begin, resident" if self._model.gate.is_resident else "begin")

    def end(self) -> None:
        """Said, and as without a room."""
        self.told.append("end, resident" if self._model.gate.is_resident else "end")


@contextmanager
def damaged(what: str, cache: Path, model: Path) -> Iterator[None]:
    """Something is done to the first image, or goes wrong for the length of a ``with`` block."""
    files = sorted(cache.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    if what == "flip":
        content = bytearray(files[0].read_bytes())
        content[len(content) // 2] ^= 1
        files[0].write_bytes(content)
    elif what in ("cut", "grow"):
        os.truncate(files[0], files[0].stat().st_size + (4096 if what == "grow" else -4096))
    elif what == "foreign":
        files[0].write_bytes(files[1].read_bytes())
    elif what == "folder":
        files[0].unlink()
        files[0].mkdir()
    elif what == "open":
        cache.chmod(0o777)
    elif what == "checkpoint":
        weights = (model / "model.safetensors").resolve()
        with weights.open("r+b") as file:
            file.truncate(8 + int.from_bytes(file.read(8), "little"))
    patch = {
        "full": (os, "posix_fallocate", _full),
        "unfit": (compat, "process_again", _unfit),
        "otherwise": (compat, "process_again", partial(_otherwise, compat.process_again)),
        "unknown": (compat, "weight_factors", _unknown),
        "memory": (image_loader, "save_image", partial(_flipped, image_loader.save_image)),
        "changing": (image_loader, "adopt", partial(_changing, model, image_loader.adopt)),
    }.get(what)
    if patch is None:
        yield
        return
    where, name, instead = patch
    real = getattr(where, name)
    setattr(where, name, instead)
    try:
        yield
    finally:
        setattr(where, name, real)


def _full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _unfit(*_: Any) -> None:
    raise RuntimeError("it cannot be processed again")


def _otherwise(real: Any, module: Any, *arguments: Any) -> None:
    real(module, *arguments)
    module.model.layers[1].has_more = True


def _unknown(*_: Any) -> None:
    raise AttributeError("no such configuration")


def _flipped(real: Any, path: Path, module: Any, model: Any, *arguments: Any, **named: Any) -> int:
    """Bits of the image in host memory, until it was to be written."""

    def flip() -> None:
        with memoryview(model.regions("weights")[0].image()) as image:
            whole = image.cast("B")
            for at in range(3, len(whole), 4096):  # many, so that tokens would show it
                whole[at] ^= 64

    flip()
    try:
        return int(real(path, module, model, *arguments, **named))
    finally:
        flip()


def _changing(model: Path, real: Any, *arguments: Any, **named: Any) -> Any:
    """Somebody writes a checkpoint anew that has just been read."""
    weights = model / "model.safetensors"
    copy = weights.with_name("copy")
    copy.write_bytes(weights.read_bytes())
    copy.replace(weights)
    return real(*arguments, **named)


def start(number: int, given: dict[str, Any], logged: Logged) -> dict[str, Any]:
    """Start one engine and ask it."""
    logged.lines = []
    rooms: list[Told] = []

    def room(_: Any, model: Any, *__: Any) -> Any:
        rooms.append(Told(model))
        return nullcontext(rooms[-1])

    pool_worker.room = room  # type: ignore[assignment]
    cache = Path(given["cache"])
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
        with damaged(given.get("damage", ""), cache, Path(given["model"])):
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
    sampling = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    if given.get("swap"):
        llm.sleep(level=1)
        llm.wake_up()
        again = llm.generate(prompts, sampling, use_tqdm=False)
        assert [o.outputs[0].token_ids for o in again] == [o.outputs[0].token_ids for o in outputs]
    _kept.append(llm)
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    regions = worker.pool_model.regions("weights") if given.get("pooled", True) else []
    return {
        "regions": len(regions),
        "rooms": [room.told for room in rooms],
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
    print(json.dumps(found), flush=True)
    os._exit(0)  # to end so many engines one by one takes longer than all of this


if __name__ == "__main__":
    main()
