"""The process of `engine_process.EngineProcess`: starts engines of vLLM, and does as it is told."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

if os.environ.get("TRITON_INTERPRET") == "1":
    # vLLM looks for a back end of Triton for CPUs, of which an interpreter needs none.
    from triton.backends import backends

    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))

from vllm import LLM  # noqa: E402

from benchmarks.engine_process import EngineSpec, own_pipe  # noqa: E402
from benchmarks.held_engine import HeldEngine  # noqa: E402

_PR_SET_PDEATHSIG = 1

#: Graphs of whole decode steps need no compiler, and are there in seconds.
GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}


def start(spec: EngineSpec) -> LLM:
    """The engine; raises what vLLM raises."""
    if spec.device == "host":
        # The pool has vLLM leave its packed weights alone: compare with what takes the same path.
        import vllm._custom_ops as custom_ops

        custom_ops._supports_onednn = False
    more: dict[str, Any] = {}
    if spec.pool is not None:
        more["worker_cls"] = "gpupool.vllm.Worker"
        room = {"cudagraph_bytes": spec.cudagraph_bytes} if spec.cudagraph_bytes else {}
        more["additional_config"] = {"gpupool": spec.pool | room}
    if spec.sleep_mode:
        more["enable_sleep_mode"] = True
    if spec.steps == "graphs":
        sizes = [size for size in (1, 2, 4, 8, 16, 32) if size <= spec.batch_size]
        more["compilation_config"] = GRAPHS | {"cudagraph_capture_sizes": sizes}
    return LLM(
        model=spec.model,
        skip_tokenizer_init=True,
        dtype="bfloat16" if spec.device == "cuda" else "float32",
        load_format=spec.load_format,
        enforce_eager=spec.steps == "eager",
        max_model_len=spec.context_tokens,
        max_num_batched_tokens=spec.step_tokens,
        max_num_seqs=spec.batch_size,
        # A check alone, since the KV cache has its size: so much must be free as it starts.
        gpu_memory_utilization=0.1,
        kv_cache_memory_bytes=spec.kv_cache_bytes,
        enable_prefix_caching=spec.prefix_caching,
        **more,
    )


def main() -> None:
    """Answer until the pipe is closed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    pipe = own_pipe()
    engines: list[HeldEngine] = []
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            break
        try:
            if what == "start":
                engines.append(HeldEngine(start(*arguments)))
                answer: Any = engines[-1].facts()
            else:
                index, *rest = arguments
                answer = getattr(engines[index], what)(*rest)
        except Exception:
            pipe.send((False, traceback.format_exc()))
        else:
            pipe.send((True, answer))
    for each in engines:
        each.leave()
    sys.stdout.flush()
    os._exit(0)  # vLLM's own end takes process groups from engines that are still there


if __name__ == "__main__":
    main()
