"""The probe with an MPS daemon that is slow or odd, which costs it that part and no other."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from probe_command import ROOT, Done

Asked = Callable[..., Done]
STARTS = {
    # Keeps the output that it was started with, as a daemon that redirects nothing.
    "keeps its output": ("sleep 300 & exit 0", ""),
    "says no": ("echo no device >&2; exit 1", "could not be started: no device"),
    "never starts": ("exec sleep 300", "s to start"),
    "says no silently": ("exit 3", "it ended with 3"),
    "is ended": ("kill -9 $$", "it ended with -9"),
}
ENDS = {"ends": "cat >/dev/null", "does not end": "exec sleep 300", "is gone": "exit 1"}


@pytest.fixture
def control(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Puts a script in the place of MPS's program, and answers the environment that has it."""

    def put(script: str) -> dict[str, str]:
        path = tmp_path / "nvidia-cuda-mps-control"
        path.write_text(script)
        path.chmod(0o755)
        return {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

    return put


@pytest.mark.parametrize("start", STARTS)
def test_a_daemon_that_does_not_start_costs_one_part(
    start: str, asked: Asked, control: Callable[[str], dict[str, str]]
) -> None:
    begin, why = STARTS[start]
    environment = control(f'#!/bin/sh\nif [ "$1" = -d ]; then {begin}; fi\ncat >/dev/null\n')
    parts = ("--parts", "device,overlap_mps,calls", "--seconds", "0.02", "--limit-s", "20")
    done = asked(*parts, **environment)
    outcome = done.report["parts"]["overlap_mps"]
    assert done.code == 0 and done.report["complete"] is True
    assert outcome["status"] == ("not answered" if why else "answered"), outcome
    if why:
        assert outcome["why"].startswith("not tried: ") and why in outcome["why"]
    assert {done.report["parts"][name]["status"] for name in ("device", "calls")} == {"answered"}


@pytest.mark.parametrize("end", ENDS)
def test_its_start_and_end_are_within_the_limit(
    end: str, asked: Asked, control: Callable[[str], dict[str, str]]
) -> None:
    environment = control(f'#!/bin/sh\nif [ "$1" = -d ]; then exit 0; fi\n{ENDS[end]}\n')
    limit_s = 4.0
    arguments = ("--parts", "overlap_mps,calls", "--seconds", "300", "--limit-s", str(limit_s))
    done = asked(*arguments, **environment)
    outcome = done.report["parts"]["overlap_mps"]
    assert outcome["status"] == "failed" and "it took more than its" in outcome["why"]
    assert done.report["parts"]["calls"]["status"] in ("not answered", "answered")
    # What was left for it was what its start and its end did not take.
    assert float(outcome["why"].split(" than its ")[1].split()[0]) <= limit_s * 3 / 4


@pytest.mark.parametrize("script", ["", "#!/nowhere/sh\n"])
def test_a_program_that_cannot_be_run(
    script: str, asked: Asked, control: Callable[[str], dict[str, str]]
) -> None:
    done = asked("--parts", "overlap_mps,device", "--seconds", "0.02", **control(script))
    assert done.report["parts"]["device"]["status"] == "answered"
    outcome = done.report["parts"]["overlap_mps"]
    assert outcome["status"] == "not answered" and "could not be started" in outcome["why"]


def test_what_was_answered_is_kept_where_the_probe_is_killed(
    stand_in: Path, tmp_path: Path
) -> None:
    into = tmp_path / "probe.json"
    # The second part would take minutes, and it is ended in it.
    command = (
        *(sys.executable, "benchmarks/probe_gpu.py", "--library", str(stand_in), "--mib", "64"),
        *("--parts", "device,overlap", "--seconds", "300", "--json", str(into), "--commit", "abc"),
    )
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("device: answered")
        report = json.loads(into.read_text())
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        while not (started := children.read_text().split()):
            assert running.poll() is None
        part = os.pidfd_open(int(started[0]))
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate(timeout=60)
    ended, _, _ = select.select([part], [], [], 60)
    os.close(part)
    assert ended, "the part goes on"
    assert report["complete"] is False and report["commit"] == "abc"
    assert list(report["parts"]) == ["device"]
    assert report["parts"]["device"]["status"] == "answered"
