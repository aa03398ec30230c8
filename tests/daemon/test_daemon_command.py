"""The commands: what they say, and how they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from daemon_bench import PAGE_BYTES, Daemon, StartDaemon

from gpupool.cli import main
from gpupool.daemon.protocol import ModelStatus, Refusal, Status
from gpupool.daemon.report import describe, size

OPTIONS = {"--device": "host", "--budget-bytes": str(4 * PAGE_BYTES), "--page-bytes": "2097152"}


def run_daemon(socket_path: Path, **changes: str) -> tuple[int, str]:
    """The exit code and what is said of a daemon that must not start."""
    options = {"--socket": str(socket_path)} | OPTIONS
    options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    result = CliRunner().invoke(
        main, ["daemon", *(word for pair in options.items() for word in pair)]
    )
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output.splitlines()[-1]


def test_help_names_every_option() -> None:
    result = CliRunner().invoke(main, ["daemon", "--help"])
    assert result.exit_code == 0
    for option in [*OPTIONS, "--socket", "--host-budget-bytes", "--turn-ms", "--min-tokens"]:
        assert option in result.output
    assert "killed" in result.output
    result = CliRunner().invoke(main, ["status", "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output


@pytest.mark.parametrize(
    ("changes", "code", "why"),
    [
        ({"device": "gpu"}, 1, "unknown device 'gpu': use 'host', 'cuda' or 'cuda:<ordinal>'"),
        ({"page_bytes": "3000000"}, 1, "must be a power of two and a multiple of"),
        ({"page_bytes": str(1 << 80)}, 1, "a page has at most"),
        ({"budget_bytes": "1000"}, 1, "budget of 1000 bytes does not hold one page"),
        ({"budget_bytes": str(10**18)}, 1, "raise it (ulimit -Hn) or use larger pages"),
        ({"budget_bytes": "0"}, 2, "0 is not in the range x>=1"),
        ({"budget_bytes": "8GB"}, 2, "'8GB' is not a valid integer range"),
        ({"turn_ms": "nan"}, 2, "nan is not in the range"),
        ({"policy": "fair"}, 2, "'fair' is not one of 'turns', 'deadlines', 'fcfs'"),
        ({"patience_ms": "nan", "policy": "fcfs"}, 2, "nan is not in the range"),
        ({"patience_ms": "5"}, 2, "--patience-ms needs a policy of requests: deadlines or fcfs"),
        ({"record": "/x"}, 2, "--record needs a policy of requests: deadlines or fcfs"),
        ({"record": "/proc/x", "policy": "fcfs"}, 1, "/proc/x cannot be written: "),
        ({"turn_ms": "inf"}, 2, "inf is not at most"),
        ({"turn_ms": "-1"}, 2, "-1.0 is not in the range x>=0"),
        ({"revoke_timeout_s": "0"}, 2, "0.0 is not in the range x>0"),
        ({"parking_folder": "/proc/parked"}, 1, "nothing can be parked: "),
        ({"parking_folder": "/tmp"}, 1, "/tmp must belong to this user and be writable by nobody"),
        ({"parking_limit_bytes": "5"}, 2, "--parking-limit-bytes needs a --parking-folder"),
        ({"socket": "/proc/pool/daemon.sock"}, 1, "cannot listen on /proc/pool/daemon.sock: "),
    ],
)
def test_a_daemon_that_cannot_start_says_why_in_one_line(
    directory: Path, changes: dict[str, str], code: int, why: str
) -> None:
    found, said = run_daemon(directory / "daemon.sock", **changes)
    assert found == code
    assert said.startswith("Error: ")
    assert why in said
    assert list(directory.iterdir()) == []


def test_no_cuda_is_an_error_and_never_the_host(directory: Path) -> None:
    hidden = {**os.environ, "LD_LIBRARY_PATH": "", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "gpupool", "daemon", "--device", "cuda:99"]
    command += ["--socket", str(directory / "daemon.sock"), "--budget-bytes", str(1 << 30)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=hidden)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_status_without_a_daemon(directory: Path) -> None:
    result = CliRunner().invoke(main, ["status", "--socket", str(directory / "daemon.sock")])
    assert result.exit_code == 1
    assert result.output.startswith("Error: no pool daemon answers on ")
    assert "start one with 'gpupool daemon' or 'gpupool serve'" in result.output


def test_status_of_a_running_daemon(start_daemon: StartDaemon) -> None:
    daemon: Daemon = start_daemon()
    model = daemon.model("tiny-a", weights=100, kv_cache=3_000_000)
    model.do("enter")
    arguments = ["status", "--socket", str(daemon.socket_path)]
    text = CliRunner().invoke(main, arguments)
    assert text.exit_code == 0
    assert "8 MiB in pages of 2 MiB (1 free, 3 granted, 0 fenced)" in text.output
    assert f"{model.process.pid}" in text.output
    found = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)
    assert found["pages_granted"] == 3
    assert found["models"][0]["name"] == "tiny-a"
    assert found["models"][0]["swap_in_copied_bytes"] == [0]


def test_what_the_status_looks_like() -> None:
    def model(name: str, state: str, swaps: int) -> ModelStatus:
        times = [0.1] * swaps
        return ModelStatus(
            name, 4321, state, "", 3 << 30, 0, 5 << 29, 1 << 29, swaps, 0, times, [], [], []
        )

    status = Status(
        version="0.1.0",
        device="cuda:0",
        page_bytes=64 << 20,
        budget_bytes=70 << 30,
        pages_free=1072,
        pages_granted=48,
        pages_fenced=0,
        host_bytes=6_500_000_000,
        models=[
            model("small", "resident", 7),
            msgspec.structs.replace(model("larger", "out", 12), parked_bytes=5 << 29),
        ],
        refusals=[Refusal("huge", 99, "it can never fit.")],
    )
    assert describe(status).splitlines() == [
        "gpupool 0.1.0 on cuda:0: 70 GiB in pages of 64 MiB (1072 free, 48 granted, 0 fenced)",
        "host memory handed out: 6.1 GiB",
        "MODEL   STATE     NEEDS  WEIGHTS  KV CACHE  SWAP-INS  PROCESS",
        "small   resident  3 GiB  2.5 GiB   512 MiB         7     4321",
        "larger  out       3 GiB  2.5 GiB   512 MiB        12     4321",
        "larger is parked: 2.5 GiB of it is in a file",
        "refused huge (process 99): it can never fit.",
    ]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (2 << 20, "2 MiB"),
        (1 << 42, "4 TiB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text


def test_a_share_that_is_no_number_is_refused(directory: Path) -> None:
    arguments = ["prefetch", "--socket", str(directory / "daemon.sock"), "m", "--share", "nan"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "nan is not in the range" in result.output
