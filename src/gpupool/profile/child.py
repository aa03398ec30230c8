"""The process that the engine is in: how it is started, what it tells, and why it ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from gpupool.errors import GpupoolError, UsageError
from gpupool.profile.messages import Finished, Job, Message, Refused
from gpupool.serve import checkpoint, logs

_RESERVED = frozenset(
    {
        *("additional-config", "config", "enable-prefix-caching", "kv-cache-memory-bytes", "model"),
        *("no-enable-prefix-caching", "speculative-config", "worker-cls"),
    }
)
"""Options of vLLM that are decided here, or under which a step is not a token of each request."""


class EngineEndedError(GpupoolError):
    """The engine ended before all was measured."""


def check(job: Job) -> None:
    """Raises UsageError for what no engine need be started for."""
    for word in job.options:
        option = word.partition("=")[0].lstrip("-").replace("_", "-")
        if word.startswith("-") and option in _RESERVED:
            raise UsageError(f"'gpupool profile' decides on --{option} itself: leave it out")
    try:
        checkpoint.locate(job.model, Path())
    except ValueError as error:
        raise UsageError(str(error)) from None


def messages(job: Job, log_path: Path) -> Iterator[Message]:
    """Start an engine, and what it tells until all is measured; nothing of it is left then.

    What it prints is appended to ``log_path``. Raises UsageError for what it refuses, and
    EngineEndedError.
    """
    told_fd, tell_fd = os.pipe()
    try:
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "gpupool.vllm.profiling", str(tell_fd)],
                env=_environment(job),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(tell_fd,),
                start_new_session=True,  # Ctrl-C is for this process, which ends that one
            )
    except BaseException:
        os.close(told_fd)
        raise
    finally:
        os.close(tell_fd)
    decoder = msgspec.json.Decoder(Message)
    finished = False
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as asked:
            asked.write(msgspec.json.encode(job))
        for line in _lines(told_fd, process.pid):
            message = decoder.decode(line)
            if isinstance(message, Refused):
                raise UsageError(message.message)
            finished = isinstance(message, Finished)
            yield message
        if not finished:
            raise EngineEndedError(_why(process.wait(), logs.tail(log_path)))
    finally:
        os.close(told_fd)
        with contextlib.suppress(ProcessLookupError):  # and what it has started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _lines(told_fd: int, pid: int) -> Iterator[bytes]:
    """Until the process has ended, also if one that it leaves behind has the pipe open."""
    os.set_blocking(told_fd, False)
    ended_fd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(told_fd, select.POLLIN)
        poll.register(ended_fd, select.POLLIN)
        rest, ended = b"", False
        while not ended:
            ended = ended_fd in {fd for fd, _ in poll.poll()}
            with contextlib.suppress(BlockingIOError):
                while part := os.read(told_fd, 1 << 16):
                    *lines, rest = (rest + part).split(b"\n")
                    yield from lines
                ended = True  # nobody has it open any more
    finally:
        os.close(ended_fd)


def _environment(job: Job) -> dict[str, str]:
    environment = dict(os.environ)
    # It would override the size of the KV cache on the CPU platform.
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
    environment |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if Path(job.model).expanduser().is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    if job.device != "host":
        from gpupool.serve.launch import device_environment

        environment |= device_environment(job.device, environment)
    return environment


def _why(status: int, lines: Sequence[str]) -> str:
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    return f"the engine ended {how}: {logs.reason(list(lines))}"
