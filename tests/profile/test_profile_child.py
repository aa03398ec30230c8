"""A process in the engine's place that does what engines do in the worst case."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from gpupool.cli import main
from gpupool.errors import UsageError
from gpupool.profile import child
from gpupool.profile.messages import Finished, Job, Refused, Timed

PYTHON = sys.executable
JOB = Job("org/name", "host", 1, 1, None, None, 1, 1, 1, [])
TIMED = msgspec.json.encode(Timed(1, 0, 0.5, [0.25])).decode()
REFUSED = msgspec.json.encode(Refused("it does not fit: give less")).decode()
FINISHED = msgspec.json.encode(Finished()).decode()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable that is started in place of Python; the last argument is where it tells."""
    path = tmp_path / "engine"
    monkeypatch.setattr(child.sys, "executable", str(path))
    return path


def write(path: Path, *lines: str) -> None:
    head = (f"#!{PYTHON}", "import os, signal, sys, time")
    told = ("asked = sys.stdin.read()", "tell = lambda s: os.write(int(sys.argv[-1]), s.encode())")
    path.write_text("\n".join([*head, *told, *lines]))
    path.chmod(0o755)


def test_what_it_tells_is_heard_to_the_end(engine: Path, tmp_path: Path) -> None:
    write(
        engine,
        "print('loading', asked)",
        f"tell({TIMED!r}[:9])",  # however it arrives
        f"tell({TIMED!r}[9:] + '\\n')",
        f"tell({FINISHED!r} + '\\n')",
    )
    log_path = tmp_path / "log"
    assert list(child.messages(JOB, log_path)) == [Timed(1, 0, 0.5, [0.25]), Finished()]
    assert log_path.read_text() == f"loading {msgspec.json.encode(JOB).decode()}\n"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("os.kill(os.getpid(), signal.SIGKILL)",), "by signal 9: it wrote nothing"),
        (("raise MemoryError('no room for weights')",), "status 1: MemoryError: no room for w"),
        (("sys.exit(0)",), "with status 0: it wrote nothing"),
        (("if os.fork() == 0: time.sleep(600)", "os._exit(3)"), "with status 3: it wrote nothing"),
        (("sys.exit('x.py: error: unrecognized arguments: --x')",), "arguments: --x"),
    ],
)
@pytest.mark.parametrize("told", [False, True])
def test_an_engine_that_dies_is_an_error(
    engine: Path, tmp_path: Path, lines: tuple[str, ...], says: str, told: bool
) -> None:
    write(engine, *((f"tell({TIMED!r} + '\\n')",) if told else ()), *lines)
    found = []
    with pytest.raises(child.EngineEndedError, match=f"the engine ended .*{says}"):
        found.extend(child.messages(JOB, tmp_path / "log"))
    assert len(found) == told


def test_what_it_refuses_is_told_as_it_is(engine: Path, tmp_path: Path) -> None:
    write(engine, f"tell({REFUSED!r} + '\\n')", "time.sleep(600)")
    with pytest.raises(UsageError, match=r"^it does not fit: give less$"):
        list(child.messages(JOB, tmp_path / "log"))


def test_nothing_of_it_is_left_when_nobody_listens(engine: Path, tmp_path: Path) -> None:
    """It, and what it started, hold a pipe that ends with them."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    write(
        engine,
        f"held = os.open({str(pipe)!r}, os.O_WRONLY)",
        "os.fork()",
        f"tell({TIMED!r} + '\\n')",
        "time.sleep(600)",
    )
    listening = child.messages(JOB, tmp_path / "log")
    held = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert next(listening) == Timed(1, 0, 0.5, [0.25])
    listening.close()
    os.set_blocking(held, True)
    assert os.read(held, 1) == b""
    os.close(held)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("org/name", "--device", "tpu"), "'tpu' is not host, cuda or cuda:<ordinal>"),
        (("org/name", "--input-tokens", "16,0"), "'16,0' is not a list of whole numbers above 0"),
        (("org/name", "--batch-sizes", ""), "is not a list of whole numbers"),
        (("org/name", "--kv-cache", "4GB"), "'4GB' is not a size; write a whole number"),
        (("org/name", "--runs", "0"), "--runs"),
        (("/nowhere/model",), "/nowhere/model does not exist; name a checkpoint directory"),
        (("org/name", "--output", "/nowhere/p.csv"), "/nowhere is no folder: --output needs one"),
        (("org/name", "--", "--worker_cls=x"), "decides on --worker-cls itself: leave it out"),
        (("org/name", "--", "--model", "x"), "decides on --model itself: leave it out"),
    ],
)
def test_what_is_wrong_is_said_before_an_engine_starts(
    engine: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = CliRunner().invoke(main, ["profile", *arguments])
    assert done.exit_code != 0
    assert says in done.stderr
    assert "Traceback" not in done.output


def test_a_file_that_is_no_profile_is_not_written_to(engine: Path, tmp_path: Path) -> None:
    path = tmp_path / "letter.csv"
    path.write_text("dear,reader\n")
    done = CliRunner().invoke(main, ["profile", "org/name", "--output", str(path)])
    assert done.exit_code != 0
    assert "it has no column" in done.stderr
    assert path.read_text() == "dear,reader\n"
