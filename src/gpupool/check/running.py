"""Runs a part: its commands in turn, with one limit for all, their output in a file."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from gpupool.check.parts import Part

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
SAID_BYTES = 3000  # of its output that go into the report
FIGURES_BYTES_MAX = 256 << 10  # of one program's
SKIPPED_ITSELF = 77  # of a C++ test, where it finds no device


@dataclass(frozen=True)
class Outcome:
    """What a part came to."""

    status: str
    why: str = ""
    took_s: float = 0.0
    said: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    """What its programs measured, by the names of the files that they were to write it to."""


#: Runs a part of a source tree, with a file for its output.
Runner = Callable[[Part, Path, Path], Outcome]


def run_part(part: Part, tree: Path, log: Path) -> Outcome:
    """Run it; what it started is ended when it returns. One that fails does not keep the next."""
    began = time.monotonic()
    failures: list[str] = []
    written = _written_by(part, tree)
    for path in written:
        path.unlink(missing_ok=True)  # of a run before
    with log.open("w+b") as output:
        for command in part.commands:
            left_s = part.limit_s - (time.monotonic() - began)
            if left_s <= 0:
                failures.append(f"no time was left for {shlex.join(command)}")
            elif why := _run(command, part, tree, output, left_s):
                failures.append(why)
        output.seek(max(0, output.tell() - SAID_BYTES))
        said = output.read().decode(errors="replace")
    figures = {path.stem: _figures(path) for path in written if path.exists()}
    for name, found in figures.items():
        if isinstance(found, dict) and found.get("complete") is False:
            failures.append(f"the figures of {name} are not whole")
    status = FAILED if failures else PASSED
    why = "; ".join([*failures, *filter(None, [part.note])])
    return Outcome(status, why, round(time.monotonic() - began, 2), said, figures)


def _written_by(part: Part, tree: Path) -> list[Path]:
    """Where its programs are told to leave their figures."""
    pairs = [pair for command in part.commands for pair in pairwise(command)]
    return [tree / name for option, name in pairs if option == "--json"]


def _figures(path: Path) -> Any:
    """What a program wrote, or why it is not there: that keeps nobody from the rest."""
    size_bytes = path.stat().st_size
    if size_bytes > FIGURES_BYTES_MAX:
        return f"{size_bytes} bytes, in {path}"
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # it was ended as it wrote, perhaps
        return f"{path} cannot be read: {error}"


def _run(command: tuple[str, ...], part: Part, tree: Path, output: IO[bytes], left_s: float) -> str:
    """Why it failed, or nothing. Leaves the file at its end."""
    shown = shlex.join(command)
    output.write(f"$ {shown}\n".encode())
    output.flush()
    begin = output.tell()
    process = subprocess.Popen(
        command,
        cwd=tree if tree.is_dir() else None,
        env=os.environ | part.environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        code = process.wait(timeout=left_s)
    except subprocess.TimeoutExpired:
        return f"over its {part.limit_s:.0f} s, in {shown}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(0, os.SEEK_END)
    if code == SKIPPED_ITSELF and part.name == "conformance":
        return f"{shown} found no device"
    if part.judge is not None:
        output.seek(begin)
        return part.judge(command, code, output.read().decode(errors="replace"))
    if code < 0:
        return f"{shown} was ended by {signal.Signals(-code).name}"
    return f"{shown} ended with {code}" if code else ""
