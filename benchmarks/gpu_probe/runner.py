"""Runs each part in a process of its own, which is ended with all it started at its limit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_probe.device import Settings
from gpu_probe.driver import MissingError
from gpu_probe.mps import end_s, mps_daemon
from gpu_probe.partner import end_with
from gpu_probe.parts import PARTS, Part

ANSWERED, FAILED, NOT_ANSWERED = "answered", "failed", "not answered"


def answer_here(name: str, settings: Settings, into: Path, asked_by: int) -> None:
    """In the process of a part: ask, and leave what came of it in a file."""
    end_with(asked_by)  # whoever ends the probe would leave this session of its own at work
    try:
        outcome = {"status": ANSWERED, "answer": PARTS[name].answer(settings)}
    except MissingError as error:
        outcome = {"status": NOT_ANSWERED, "why": str(error)}
    except Exception as error:
        outcome = {"status": FAILED, "why": f"{type(error).__name__}: {error}"}
    into.write_text(json.dumps(outcome))


def run_parts(
    names: list[str],
    script: Path,
    settings: Settings,
    limit_s: float,
    say: Callable[[str], None],
    keep: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Ask them in turn; what has no time left is not answered, and says so.

    What was answered so far is kept after each, for who is cut off.
    """
    deadline = time.monotonic() + limit_s
    outcomes: dict[str, Any] = {}
    for name in names:
        part, began = PARTS[name], time.monotonic()
        left_s = min(part.limit_s, deadline - began)
        if left_s < 1:
            outcome = {"status": NOT_ANSWERED, "why": f"the {limit_s:.0f} s of all parts are over"}
        else:
            try:
                outcome = _run(part, script, settings, left_s)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                outcome = {"status": FAILED, "why": f"{type(error).__name__}: {error}"}
        took_s = time.monotonic() - began
        outcomes[name] = {"question": part.question, "took_s": round(took_s, 2)} | outcome
        keep(outcomes)
        say(f"{name}: {outcome['status']} in {took_s:.1f} s")
    return outcomes


def _run(part: Part, script: Path, settings: Settings, limit_s: float) -> dict[str, Any]:
    ends_s = time.monotonic() + limit_s
    with tempfile.TemporaryDirectory(prefix="gpupool-probe-") as folder:
        into = Path(folder) / "outcome.json"
        order = {
            "part": part.name,
            "settings": asdict(settings),
            "into": str(into),
            "asked_by": os.getpid(),
        }
        command = [sys.executable, str(script), "--run-part", json.dumps(order)]
        try:
            with mps_daemon(limit_s) if part.mps else contextlib.nullcontext({}) as environment:
                left_s = ends_s - time.monotonic() - (end_s(limit_s) if part.mps else 0)
                ended, said = _run_process(command, os.environ | environment, left_s)
        except MissingError as error:
            return {"status": NOT_ANSWERED, "why": str(error)}
        if into.exists():
            outcome: dict[str, Any] = json.loads(into.read_text())
            return outcome
    return {"status": FAILED, "why": f"{ended}: {said[-500:].strip() or 'it said nothing'}"}


def _run_process(
    command: list[str], environment: dict[str, str], limit_s: float
) -> tuple[str, str]:
    """How it ended, and what it said on the way."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=errors,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # so that its partners end with it
        )
        try:
            code = process.wait(timeout=limit_s)
            if code < 0:
                ended = f"the process of this part was ended by {signal.Signals(-code).name}"
            else:
                ended = f"the process of this part ended with {code}"
        except subprocess.TimeoutExpired:
            ended = f"it took more than its {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        errors.seek(0)
        return ended, errors.read()
