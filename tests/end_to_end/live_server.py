"""A real ``gpupool serve`` for tests: two tiny models, a pool that holds one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from demo.checkpoints import write_llama
from demo.pool import ENGINE_ARGS, ENGINE_ENVIRONMENT

MIB = 1 << 20
KV_CACHE = "4MiB"
START_TIMEOUT_S = 280.0


def write_config(directory: Path, *, budget: str, models: int, **pool: Any) -> Path:
    """A pool.yaml for ``models`` checkpoints of 5 to 7 MB each, written beside it."""
    listed = []
    for index in range(models):
        checkpoint = write_llama(
            directory / f"checkpoint{index}",
            seed=index + 1,
            hidden_size=64 + 32 * index,
            heads=2 + index,
            kv_heads=1,
        )
        args = {**ENGINE_ARGS, "max-model-len": 512}
        args.pop("disable-log-stats")  # the tests look at what an engine has running
        listed.append(
            {"name": f"m{index}", "model": str(checkpoint), "kv_cache": KV_CACHE, "args": args}
        )
    path = directory / "pool.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "pool": {
                    **{"device": "host", "budget": budget, "page": "2MiB", "turn_ms": 20},
                    **pool,
                },
                "server": {"port": 0},
                "models": listed,
            }
        )
    )
    return path


class Served:
    """A running server and how to talk to it."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, run_directory: Path) -> None:
        self.process = process
        self.url = url
        self.run_directory = run_directory
        self.http = httpx.Client(base_url=url, timeout=120.0)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/status").json()
        return found

    def model(self, name: str) -> dict[str, Any] | None:
        """What the daemon says of a model."""
        models = self.status()["daemon"]["models"]
        return next((model for model in models if model["name"] == name), None)

    def engine(self, name: str) -> dict[str, Any]:
        """What the supervisor says of a model's engine."""
        found: dict[str, Any] = next(e for e in self.status()["engines"] if e["name"] == name)
        return found

    def complete(self, name: str, *, tokens: int = 24, prompt: str = "The name of") -> str:
        answer = self.http.post("/v1/completions", json=self.request(name, tokens, prompt))
        answer.raise_for_status()
        text: str = answer.json()["choices"][0]["text"]
        return text

    @staticmethod
    def request(name: str, tokens: int, prompt: str = "The name of") -> dict[str, Any]:
        return {
            "model": name,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    @contextmanager
    def stream(self, name: str, tokens: int) -> Iterator[Iterator[dict[str, Any]]]:
        """The events of a streamed completion; leaving early disconnects."""
        body = {**self.request(name, tokens), "stream": True}
        with httpx.Client(base_url=self.url, timeout=120.0) as client:  # noqa: SIM117
            with client.stream("POST", "/v1/completions", json=body) as response:
                yield _events(response)


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def start(config: Path, directory: Path, runtime: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """A ``gpupool serve`` process whose run directory lies in ``runtime``, and its log."""
    log = directory / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpupool", "serve", str(config)],
            env={
                **os.environ,
                **ENGINE_ENVIRONMENT,
                "PYTHONUNBUFFERED": "1",
                "VLLM_SERVER_DEV_MODE": "1",  # /sleep and /wake_up
                "XDG_RUNTIME_DIR": str(runtime),
                "XDG_STATE_HOME": str(directory / "state"),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, log


@contextmanager
def runtime_directory() -> Iterator[Path]:
    """One whose path is short enough for sockets in it, which pytest's own may not be."""
    with tempfile.TemporaryDirectory() as runtime:
        yield Path(runtime)


@contextmanager
def serving(directory: Path, **config: Any) -> Iterator[Served]:
    """A server that is ready; killed in the end if the test has not ended it."""
    with runtime_directory() as runtime:
        yield from _serving(directory, runtime, **config)


def _serving(directory: Path, runtime: Path, **config: Any) -> Iterator[Served]:
    process, log = start(write_config(directory, **config), directory, runtime)
    try:
        wait_until(
            lambda: process.poll() is not None or b"gpupool ready: " in log.read_bytes(),
            START_TIMEOUT_S,
        )
        assert process.poll() is None, log.read_text()[-3000:]
        line = next(x for x in log.read_text().splitlines() if "gpupool ready: " in x)
        yield Served(process, line.split("gpupool ready: ")[1].strip(), runtime)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()


def wait_until(condition: Callable[[], object], timeout_s: float) -> None:
    """Poll until ``condition`` holds; AssertionError after ``timeout_s``."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not so within {timeout_s:g} s"
        time.sleep(0.05)
