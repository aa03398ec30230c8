"""The whole of `gpupool serve` in a process of its own, over a fake daemon and fake engines."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import yaml
from starlette.applications import Starlette
from waiting import is_running, pid_in, until

from gpupool.serve import app
from gpupool.serve.failures import ServeError
from gpupool.serve.http_server import HttpServer, listen, url_of

Make = Callable[[str], Path]
HERE = Path(__file__).parent


class Served:
    """A running server, and where it keeps its things."""

    def __init__(self, config: Path, runtime: Path, out: Path, grace_s: float) -> None:
        self.runtime = runtime
        self._out = out.open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "run_with_fakes.py"), str(config), str(grace_s)],
            env={
                **os.environ,
                "XDG_RUNTIME_DIR": str(runtime),
                "XDG_STATE_HOME": str(runtime / "s"),
            },
            stdout=self._out,
            stderr=subprocess.STDOUT,
        )

    @property
    def output(self) -> str:
        return Path(self._out.name).read_text()

    @property
    def pool_dir(self) -> Path:
        until(lambda: list(self.runtime.glob("gpupool-*/pool")))
        return next(self.runtime.glob("gpupool-*/pool"))

    def client(self) -> httpx.Client:
        until(lambda: "gpupool ready: " in self.output or self.process.poll() is not None)
        url = self.output.rpartition("gpupool ready: ")[2].split()[0]
        return httpx.Client(base_url=url, timeout=20)

    def pids(self, *names: str) -> list[int]:
        return [pid_in(self.pool_dir / name) for name in names]

    def wait(self) -> int:
        return self.process.wait(30)

    def assert_nothing_left(self, pids: list[int]) -> None:
        until(lambda: not any(map(is_running, pids)))
        assert not list(self.runtime.glob("gpupool-*")) and not list(self.runtime.glob(".gpupool*"))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._out.close()


Start = Callable[..., Served]


@pytest.fixture
def start(tmp_path: Path, make_checkpoint: Make) -> Iterator[Start]:
    checkpoint = make_checkpoint("checkpoint")
    # Short, for the paths of sockets.
    runtime = Path(tempfile.mkdtemp(prefix="gpt-", dir="/tmp"))
    runs: list[Served] = []

    def begin(
        models: dict[str, list[str]], grace_s: float = 10.0, device: str | list[str] = "host"
    ) -> Served:
        content: dict[str, Any] = {
            "pool": {"device": device, "budget": "192MiB", "page": "2MiB"},
            "server": {"port": 0},
            "models": [
                {"name": n, "model": str(checkpoint), "kv_cache": 1, "args": {"fake": options}}
                for n, options in models.items()
            ],
        }
        config = tmp_path / "pool.yaml"
        config.write_text(yaml.safe_dump(content))
        runs.append(Served(config, runtime, tmp_path / f"{len(runs)}.out", grace_s))
        return runs[-1]

    yield begin
    for served in runs:
        served.close()
    shutil.rmtree(runtime)


PIDS = ["daemon.pid", "a.server", "a.worker"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_two_models_and_leaves_nothing(start: Start, number: signal.Signals) -> None:
    served = start({"a": [], "b": []})
    with served.client() as client:
        for name in ("a", "b"):
            answer = client.post("/v1/chat/completions", json={"model": name})
            assert answer.json()["served_by"] == name
        assert client.get("/health").status_code == 200
        assert client.get("/status").json()["daemon"]["device"] == "host"
    pids = served.pids(*PIDS, "b.server", "b.worker")
    assert served.pool_dir.parent.stat().st_mode & 0o777 == 0o700
    lines = served.output.splitlines()
    assert lines.index("a: ready") < next(n for n, x in enumerate(lines) if x.startswith("b: sta"))
    served.process.send_signal(number)
    assert served.wait() == 0
    served.assert_nothing_left(pids)


def test_a_daemon_for_each_device(start: Start) -> None:
    served = start({"a": []}, device=["host", "host"])
    daemons = ["daemon00.pid", "daemon01.pid"]
    with served.client() as client:
        status = client.get("/status").json()
        assert status["devices"][0] == status["daemon"]
        assert len(status["devices"]) == 2
        assert 'gpupool_pages{state="free"} 190.0' in client.get("/metrics").text
    pids = served.pids(*daemons, "a.server", "a.worker")
    os.kill(pids[1], signal.SIGKILL)  # of the second device
    assert served.wait() == 1
    assert "the pool daemon ended unexpectedly" in served.output
    served.assert_nothing_left(pids)


def test_a_second_signal_kills_at_once(start: Start) -> None:
    served = start({"a": ["deaf"]}, grace_s=3600.0)
    served.client().close()
    pids = served.pids(*PIDS)
    served.process.send_signal(signal.SIGINT)
    until(lambda: "stopping" in served.output)
    assert served.process.poll() is None and is_running(pids[1])
    served.process.send_signal(signal.SIGINT)
    assert served.wait() == 130
    served.assert_nothing_left(pids)


def test_a_signal_during_the_start_ends_it(start: Start) -> None:
    served = start({"a": [], "b": ["outside"]})
    pids = served.pids(*PIDS, "b.server")
    served.process.send_signal(signal.SIGINT)
    assert served.wait() == 0
    assert "gpupool ready" not in served.output
    served.assert_nothing_left(pids)


def test_kill_9_leaves_no_process_and_the_next_run_cleans_up(start: Start) -> None:
    served = start({"a": ["deaf"]})
    served.client().close()
    pids, left = served.pids(*PIDS), served.pool_dir.parent
    served.process.kill()
    served.wait()
    until(lambda: not any(map(is_running, pids)))
    assert left.exists()
    again = start({"a": []})
    until(lambda: not left.exists())
    again.client().close()
    again.process.send_signal(signal.SIGINT)
    assert again.wait() == 0


@pytest.mark.parametrize("victim", ["a.server", "a.worker"])
def test_one_engines_death_leaves_the_others_and_is_repaired(start: Start, victim: str) -> None:
    served = start({"a": [], "b": []})
    with served.client() as client, httpx.Client(base_url=client.base_url, timeout=20) as other:
        answers: list[httpx.Response] = []
        body = {"model": "a", "hang": True}
        thread = threading.Thread(
            target=lambda: answers.append(other.post("/v1/completions", json=body))
        )
        thread.start()
        until((served.pool_dir / "a.hanging").exists)
        os.kill(served.pids(victim)[0], signal.SIGKILL)
        thread.join(10)
        assert answers[0].status_code == 502
        assert answers[0].json()["error"]["code"] == "engine_died"
        assert client.post("/v1/completions", json={"model": "b"}).status_code == 200
        until(lambda: client.get("/status").json()["engines"][0]["restarts"] == 1)
        until(lambda: client.get("/health").status_code == 200)
        assert client.post("/v1/completions", json={"model": "a"}).status_code == 200


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("refused", "gpupool: model 'b' cannot start: b needs 9 bytes, not 8\n"),
        ("broken", "gpupool: model 'b' cannot start: ValueError: the weights are no good (log: "),
    ],
)
def test_an_engine_that_cannot_start_ends_everything(start: Start, option: str, says: str) -> None:
    served = start({"a": [], "b": [option]})
    assert served.wait() == 1
    assert says in served.output and "Traceback" not in served.output
    assert "gpupool ready" not in served.output
    served.assert_nothing_left([])


def test_the_end_of_the_daemon_ends_everything(start: Start) -> None:
    served = start({"a": []})
    served.client().close()
    pids = served.pids(*PIDS)
    os.kill(pids[0], signal.SIGKILL)
    assert served.wait() == 1
    assert "the pool daemon ended unexpectedly (exit status 137)" in served.output
    assert "Traceback" not in served.output
    served.assert_nothing_left(pids)


def test_a_bad_configuration_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(tmp_path / "none.yaml", host=None, port=None) == 1
    assert capsys.readouterr().err.startswith(f"gpupool: {tmp_path}/none.yaml: cannot be read")


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ServeError, match=r"server\.(host|port)"):
        listen(host, 0)


def test_addresses_are_shown_with_their_real_port() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener, "127.0.0.1") == f"http://127.0.0.1:{port}"
        assert url_of(listener, "::1") == f"http://[::1]:{port}"


def test_a_server_can_be_reached_from_its_start_on() -> None:
    async def reach(listener: socket.socket) -> None:
        server = HttpServer(Starlette(), listener)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.getsockname(), timeout=20)
        server.start()
        with socket.create_connection(listener.getsockname(), timeout=20):
            await server.stop(0)

    with listen("127.0.0.1", 0) as listener:
        anyio.run(reach, listener)


def test_a_port_that_is_taken_before_the_start_is_told() -> None:
    with listen("127.0.0.1", 0) as listener, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(listener.getsockname())
        other.listen()
        with pytest.raises(ServeError, match=r"taken by another program .* server\.port"):
            HttpServer(Starlette(), listener).start()


def test_a_taken_port_starts_nothing(
    tmp_path: Path, make_checkpoint: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint("a")
    (tmp_path / "pool.yaml").write_text(
        "pool: {device: host, budget: 64MiB}\nmodels: [{name: a, model: a, kv_cache: 1MiB}]\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert app.run(tmp_path / "pool.yaml", host="127.0.0.1", port=port) == 1
    assert f"127.0.0.1:{port} cannot be bound" in capsys.readouterr().err
