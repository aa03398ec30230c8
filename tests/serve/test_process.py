"""The guard: nothing of a server is left, however its end comes about."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from waiting import children_of, is_running, pid_in, until, until_async

from gpupool.serve.failures import ServeError
from gpupool.serve.process import GuardedProcess
from gpupool.serve.run_directory import run_directory

# A server with a child in a session of its own, as an engine core may be; both deaf on request.
SERVER = """
import os, signal, subprocess, sys
from pathlib import Path
directory, deaf = Path(sys.argv[1]), "deaf" in sys.argv
if "child" in sys.argv[2:3] or deaf: signal.signal(signal.SIGTERM, signal.SIG_IGN)
role = sys.argv[2]
if role == "server":
    subprocess.Popen([sys.executable, __file__, sys.argv[1], "child"], start_new_session=True)
    while not (directory / "child").exists(): pass
(directory / f"{role}.new").write_text(str(os.getpid()))
(directory / f"{role}.new").rename(directory / role)
print("up", flush=True)
if "exit" in sys.argv: sys.exit(7)
while True: signal.pause()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return path


def guarded(
    script: Path, *options: str, then: Callable[[GuardedProcess, int], Awaitable[None]]
) -> None:
    """Starts the server, waits until it and its child run, and gives them to `then`."""

    async def main() -> None:
        command = [sys.executable, str(script), str(script.parent), "server", *options]
        process = await GuardedProcess.start(command, os.environ, script.parent / "log")
        try:
            server = script.parent / "server"
            await until_async(server.exists)
            assert int(server.read_text()) == process.pid
            await then(process, int((script.parent / "child").read_text()))
        finally:
            await process.stop(0)

    anyio.run(main)


def test_a_polite_end_takes_the_children_along(script: Path) -> None:
    async def then(process: GuardedProcess, child: int) -> None:
        with anyio.fail_after(30):
            await process.stop(30)
        assert process.returncode == 128 + signal.SIGTERM
        assert not is_running(process.pid) and not is_running(child)

    guarded(script, then=then)
    assert (script.parent / "log").read_text() == "up\nup\n"


def test_a_deaf_server_is_killed_after_the_grace(script: Path) -> None:
    async def then(process: GuardedProcess, child: int) -> None:
        with anyio.fail_after(30):
            await process.stop(0.2)
        assert process.returncode == 128 + signal.SIGKILL
        assert not is_running(process.pid) and not is_running(child)

    guarded(script, "deaf", then=then)


def test_a_stop_that_is_cancelled_still_leaves_nothing(script: Path) -> None:
    async def then(process: GuardedProcess, child: int) -> None:
        with anyio.move_on_after(0.1):
            await process.stop(3600)
        assert process.ended
        assert not is_running(process.pid) and not is_running(child)

    guarded(script, "deaf", then=then)


def test_a_server_that_ends_takes_its_children_along(script: Path) -> None:
    async def then(process: GuardedProcess, child: int) -> None:
        with anyio.fail_after(30):
            assert await process.wait() == 7
        assert not is_running(child)

    guarded(script, "exit", then=then)


def test_a_killed_server_takes_its_children_along(script: Path) -> None:
    async def then(process: GuardedProcess, child: int) -> None:
        os.kill(process.pid, signal.SIGKILL)
        with anyio.fail_after(30):
            assert await process.wait() == 128 + signal.SIGKILL
        assert not is_running(child)

    guarded(script, then=then)


def test_a_killed_guard_takes_the_server_along(script: Path) -> None:
    async def then(process: GuardedProcess, child: int) -> None:
        guard_pid = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(guard_pid, signal.SIGKILL)
        with anyio.fail_after(30):
            assert await process.wait() == 128 + signal.SIGKILL
        await until_async(lambda: not is_running(process.pid))
        os.kill(child, signal.SIGKILL)  # in a session of its own: nobody could know of it

    guarded(script, then=then)


SUPERVISOR = """
import os, sys, anyio
from pathlib import Path
from gpupool.serve.process import GuardedProcess
async def main():
    command = [sys.executable, sys.argv[1], sys.argv[2], "server", "deaf"]
    await GuardedProcess.start(command, os.environ, Path(sys.argv[2]) / "log")
    await anyio.sleep_forever()
anyio.run(main)
"""


def test_kill_9_of_the_supervisor_leaves_no_orphan(script: Path) -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(script), str(script.parent)]
    )
    try:
        server, child = (pid_in(script.parent / role) for role in ("server", "child"))
        (guard,) = children_of(supervisor.pid)
        assert is_running(server) and is_running(child)
    finally:
        supervisor.kill()
        supervisor.wait()
    until(lambda: not any(map(is_running, (guard, server, child))))


# A tracker is the multiprocessing module's own; the second segment is nobody's.
SHARER = """
import mmap, os, signal, sys
from multiprocessing.shared_memory import SharedMemory
kept = SharedMemory(name=sys.argv[1], create=True, size=4096)
fd = os.open("/dev/shm/" + sys.argv[2], os.O_CREAT | os.O_RDWR, 0o600)
os.ftruncate(fd, 4096)
view = mmap.mmap(fd, 4096)
open(sys.argv[3], "w").close()
while True: signal.pause()
"""


def test_shared_memory_of_a_killed_server_is_removed(tmp_path: Path) -> None:
    names = [f"gpupool-test-{os.getpid()}-{n}" for n in range(2)]
    paths = [Path("/dev/shm") / name for name in names]

    async def main() -> None:
        command = [sys.executable, "-c", SHARER, *names, str(tmp_path / "up")]
        process = await GuardedProcess.start(command, os.environ, tmp_path / "log")
        try:
            await until_async((tmp_path / "up").exists)
            assert all(path.exists() for path in paths)
        finally:
            await process.stop(0)
        assert not any(path.exists() for path in paths)

    anyio.run(main)


def test_a_command_that_does_not_exist_is_one_clear_error(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(ServeError, match=r"/no/such cannot be started: .*No such file"):
            await GuardedProcess.start(["/no/such"], os.environ, tmp_path / "log")

    anyio.run(main)


def test_run_directories_are_private_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short := Path("/tmp") / f"gt{os.getpid()}"))
    short.mkdir()
    try:
        with run_directory() as path:
            assert path.parent == short and path.stat().st_mode & 0o777 == 0o700
            (path / "file").touch()
            with run_directory() as other:
                assert path.exists() and other.exists()
        assert not list(short.iterdir())
    finally:
        short.rmdir()


def test_run_directories_of_killed_runs_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short := Path("/tmp") / f"gs{os.getpid()}"))
    short.mkdir()
    code = "import os\nfrom gpupool.serve.run_directory import run_directory\n"
    code += "with run_directory(): os.kill(os.getpid(), 9)"
    try:
        (short / "gpupool-foreign").mkdir()
        subprocess.run([sys.executable, "-c", code], check=False)
        assert len(list(short.iterdir())) == 2
        with run_directory() as path:
            assert sorted(short.iterdir()) == sorted([path, short / "gpupool-foreign"])
    finally:
        (short / "gpupool-foreign").rmdir()
        short.rmdir()


def test_a_run_directory_whose_path_is_too_long_for_sockets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with pytest.raises(ServeError, match="set XDG_RUNTIME_DIR"), run_directory():
        pass
