"""`gpupool serve` as the demo runs it: the pool, its engines' settings, its process."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

MIB = 1 << 20

MAX_MODEL_LEN = 1024
KV_CACHE_BYTES = 32 * MIB
#: Room for the largest of the demo's models with its KV cache, and for no two of them.
BUDGET_BYTES = 144 * MIB
PAGE_BYTES = 2 * MIB
#: Shorter than the default of 200 ms, so that many swaps fall inside answers this short.
TURN_MS = 50

#: Found quickest to start. `uni` keeps the worker in the engine core's process, as vLLM does on
#: a GPU: one interpreter less to start, a third of the time.
ENGINE_ARGS: dict[str, Any] = {
    "dtype": "float32",
    "max-model-len": MAX_MODEL_LEN,
    "enforce-eager": True,
    "distributed-executor-backend": "uni",
    "disable-log-stats": True,
    "disable-uvicorn-access-log": True,
    "enable-log-requests": False,
}

#: For the served engines and the reference runs alike. One thread of computation each: the
#: models are small, and the other core is for the HTTP servers and the client.
ENGINE_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # On the CPU platform vLLM accepts `uni` only with this; the engine core of a server is a
    # process of its own all the same.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

_PR_SET_PDEATHSIG = 1
_READY = "gpupool ready: "
_STOP_TIMEOUT_S = 30.0


class ServerError(Exception):
    """The server failed; the message ends with the last lines of its log."""


def pool_config(checkpoints: dict[str, Path]) -> dict[str, Any]:
    """pool.yaml for the models in `checkpoints`."""
    return {
        "pool": {
            "device": "host",
            "budget": f"{BUDGET_BYTES // MIB}MiB",
            "page": f"{PAGE_BYTES // MIB}MiB",
            "turn_ms": TURN_MS,
        },
        "server": {"host": "127.0.0.1", "port": 0},
        "models": [
            {
                "name": name,
                "model": str(path),
                "kv_cache": f"{KV_CACHE_BYTES // MIB}MiB",
                "args": ENGINE_ARGS,
            }
            for name, path in checkpoints.items()
        ],
    }


class PoolServer:
    """A `gpupool serve` process, with its log in a file.

    Use it as an asynchronous context manager: on leaving, the server is asked to end, and
    killed when it does not.
    """

    def __init__(self, config: dict[str, Any], directory: Path) -> None:
        self._config = config
        self._directory = directory
        self.log_path = directory / "serve.log"
        self.url = ""
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> PoolServer:
        self._directory.mkdir(parents=True, exist_ok=True)
        config_path = self._directory / "pool.yaml"
        config_path.write_text(yaml.safe_dump(self._config, sort_keys=False))
        with self.log_path.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gpupool", "serve", str(config_path)),
                env={**os.environ, **ENGINE_ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=log,
                # Ctrl-C reaches the demo alone, which then ends the server once.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
            raise ServerError(
                self.with_log(f"the server did not end within {_STOP_TIMEOUT_S:.0f} s of SIGTERM")
            ) from None

    async def until_ready(self, on_progress: Callable[[str], None], timeout_s: float) -> None:
        """Wait until every model can answer; `on_progress` gets the log's last line.

        Raises ServerError when the server ends or is not ready within `timeout_s` seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self.url:
                    lines = self.log_path.read_text(errors="replace").splitlines()
                    ready = [line for line in lines if _READY in line]
                    if ready:
                        self.url = ready[0].split(_READY, 1)[1].strip()
                    elif lines:
                        on_progress(lines[-1])
                    self.check()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise ServerError(
                self.with_log(f"the server was not ready within {timeout_s:.0f} s")
            ) from None

    def check(self) -> None:
        """Raises ServerError when the server has ended."""
        assert self._process is not None
        if self._process.returncode is not None:
            raise ServerError(
                self.with_log(f"the server ended with status {self._process.returncode}")
            )

    async def status(self, client: httpx.AsyncClient) -> dict[str, Any]:
        """The router's status, the pool daemon's within it; raises ServerError without one."""
        try:
            answer = await client.get(f"{self.url}/status")
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise ServerError(
                self.with_log(f"the server did not tell its status ({error})")
            ) from error
        status: dict[str, Any] = answer.json()
        if status["daemon"] is None:
            raise ServerError(self.with_log("the pool daemon did not tell its status"))
        return status

    def with_log(self, message: str) -> str:
        """`message` and the last lines of the server's log."""
        lines = self.log_path.read_text(errors="replace").splitlines()[-40:]
        return "\n".join([f"{message}; the end of {self.log_path}:", *lines])


def _end_with_parent() -> None:
    """In the child: be told to end when the demo is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
