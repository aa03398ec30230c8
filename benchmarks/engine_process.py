"""vLLM engines in processes of their own, which do what they are told over a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ANSWER_TIMEOUT_S = 550.0  # the start of an engine that compiles takes minutes
END_TIMEOUT_S = 30.0
LOG_LINES = 25

#: What small models do is done sooner by one thread than two threads meet.
HOST_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is in the process that is told
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    # Compiled when it is first used, where flashinfer is there at all.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}


@dataclass(frozen=True)
class EngineSpec:
    """One engine, and how it is started."""

    model: str
    device: str
    kv_cache_bytes: int
    steps: str = "eager"
    """``eager``, ``graphs`` (CUDA graphs of whole decode steps) or ``inductor`` (those as vLLM has
    them by default, and its compiler)."""
    pool: dict[str, Any] | None = None
    """The key ``gpupool`` of ``additional_config``; a stock engine has none."""
    cudagraph_bytes: int = 0
    """Of the pool, for its CUDA graphs; 0 for graphs outside."""
    load_format: str = "auto"
    sleep_mode: bool = False
    prefix_caching: bool = False
    context_tokens: int = 1024
    batch_size: int = 8
    step_tokens: int = 1024


class EngineError(Exception):
    """An engine failed; the message ends with the last lines of its log."""


class EngineProcess:
    """A process with engines, numbered in the order of their start; a context manager.

    It imports vLLM at once, and ends with the process that started it. ``runner`` is which of
    vLLM's model runners it takes, ``v1`` or ``v2``, and by default what vLLM takes there.
    """

    def __init__(self, device: str, log: Path, runner: str | None = None) -> None:
        self.name = log.stem
        self._log = log
        self.begun_s = time.perf_counter()
        environment = ENVIRONMENT | (HOST_ENVIRONMENT if device == "host" else {}) | os.environ
        if runner is not None:
            environment["VLLM_USE_V2_MODEL_RUNNER"] = str(int(runner == "v2"))
            if runner == "v2" and device == "host":  # its kernels are Triton's
                environment["TRITON_INTERPRET"] = "1"
        self._pipe, theirs = Pipe()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("engine_child.py"))],
                env={**environment, "GPUPOOL_ENGINE_PIPE": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        theirs.close()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def send(self, what: str, *arguments: Any) -> None:
        """Tell it to do something; ``receive`` has the answer. Raises EngineError."""
        try:
            self._pipe.send((what, arguments))
        except OSError:
            raise self._failure("ended") from None

    def receive(self) -> Any:
        """The answer to what was sent first and not answered yet. Raises EngineError."""
        if not self._pipe.poll(ANSWER_TIMEOUT_S):
            raise self._failure(f"did not answer within {ANSWER_TIMEOUT_S:.0f} s")
        try:
            is_done, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise self._failure("ended") from None
        if not is_done:
            raise EngineError(str(answer))
        return answer

    def ask(self, what: str, *arguments: Any) -> Any:
        """What it says to one thing. Raises EngineError."""
        self.send(what, *arguments)
        return self.receive()

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    def end(self) -> None:
        """Let its engines go, and wait for that; one that does not end in time is killed."""
        with suppress(OSError):
            self._pipe.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            print(f"{self._log}: did not end in {END_TIMEOUT_S:.0f} s: killed", file=sys.stderr)
            self._process.kill()
            self._process.wait()

    def _failure(self, why: str) -> EngineError:
        tail = "\n".join(self.log.splitlines()[-LOG_LINES:])
        return EngineError(f"the engine's process {why}; the end of {self._log}:\n{tail}")


def own_pipe() -> Connection:
    """In such a process: the pipe that it is told things over."""
    return Connection(int(os.environ.pop("GPUPOOL_ENGINE_PIPE")))
