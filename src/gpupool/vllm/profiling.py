"""The process that ``gpupool profile`` measures an engine in: ``python -m gpupool.vllm.profiling``.

The job comes on standard input, and messages go to the file descriptor that is its one argument.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from gpupool.errors import GpupoolError
from gpupool.profile import grid
from gpupool.profile.messages import (
    Cell,
    Finished,
    Job,
    Message,
    Refused,
    Started,
    Switched,
    Timed,
)
from gpupool.profile.timing import Step, told_apart

_PR_SET_PDEATHSIG = 1
_QUARTERS = 4


def main(tell_fd: int) -> None:
    """Measure what is asked for, and end."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.set_inheritable(tell_fd, False)

    def tell(message: Message) -> None:
        os.write(tell_fd, msgspec.json.encode(message) + b"\n")

    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    try:
        measure(job, tell)
    except GpupoolError as error:
        tell(Refused(str(error)))
    else:
        tell(Finished())
    # All that an orderly end would do, and take long for, is done by the end of the process.
    os._exit(0)


def measure(job: Job, tell: Callable[[Message], None]) -> None:
    """Start the engine, then switch it and run every batch, round after round.

    So all of them meet the same noise. The first round is for warming up.
    """
    from gpupool.vllm.offline import OfflineEngine, kv_bytes_per_token

    engine = OfflineEngine(
        job.model,
        job.device,
        job.options,
        kv_cache_bytes=job.kv_cache_bytes,
        page_bytes=job.page_bytes,
    )
    kv_cache_config = engine.of_worker(_kv_cache_config)
    cells, left_out = grid.choose(
        job.input_tokens,
        job.batch_sizes,
        grid.Limits(
            engine.context_tokens_max,
            engine.batch_size_max,
            engine.step_tokens_max,
            kv_cache_config.num_blocks - 1,  # one is nobody's
            tuple(int(g.kv_cache_spec.block_size) for g in kv_cache_config.kv_cache_groups),
        ),
        steps=job.steps,
        prompt_tokens_max=job.prompt_tokens_max,
    )
    tell(
        Started(
            engine.gpu,
            engine.of_worker(_weights_bytes),
            kv_bytes_per_token(kv_cache_config),
            engine.context_tokens_max,
            cells,
            left_out,
        )
    )
    for run in range(job.runs + 1):
        for kept in range(_QUARTERS + 1):
            tell(engine.of_worker(_switch, run, kept, job.page_bytes))
        for place, cell in enumerate(cells):
            rng = random.Random(place)  # noqa: S311 - no secret
            prefill_s, step_s = _timed(engine, cell, f"{run}-{place}", rng)
            tell(Timed(run, place, prefill_s, step_s))


def _timed(engine: Any, cell: Cell, name: str, rng: random.Random) -> tuple[float, list[float]]:
    # Words, in most vocabularies: what is special is at their ends.
    low, high = engine.vocabulary // 4, max(engine.vocabulary // 4 + 1, engine.vocabulary // 2)
    for place in range(cell.batch_size):
        prompt = [rng.randrange(low, high) for _ in range(cell.input_tokens)]
        engine.add(f"{name}-{place}", prompt, cell.answer_tokens)
    steps: list[Step] = []
    began_s = time.perf_counter()
    while engine.busy:
        requests = engine.step()
        steps.append(Step(time.perf_counter(), requests))
    return told_apart(began_s, steps, cell.batch_size)


def _kv_cache_config(worker: Any) -> Any:
    return worker._pool_kv_cache_config


def _weights_bytes(worker: Any) -> int:
    model = worker.pool_model
    tags = ("weights", "runtime", "cudagraph")
    return sum(region.bytes for tag in tags for region in model.regions(tag))


def _switch(worker: Any, run: int, kept: int, page_bytes: int) -> Switched:
    """Out and in, with so many quarters of what can stay in place."""
    model = worker.pool_model
    with model.resident():
        pass
    model.gate.give_up(keep=model.footprint_bytes)  # more pages than there are
    stay = model.warm_bytes // page_bytes * kept // _QUARTERS
    with model.resident():
        pass
    began_s = time.perf_counter()
    model.gate.give_up(keep=stay)
    left_s = time.perf_counter()
    with model.resident():
        came_s = time.perf_counter()
    report = model.last_swap_in
    return Switched(
        run,
        kept,
        report.copied_bytes,
        report.filled_bytes,
        left_s - began_s,
        came_s - left_s,
        report.map_s,
        report.copy_s,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
