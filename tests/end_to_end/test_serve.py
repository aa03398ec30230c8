"""`gpupool serve` with real vLLM engines, from the first request to Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

pytest.importorskip("vllm")

from live_server import Served, runtime_directory, serving, start, wait_until, write_config

_SHARED = "/dev/shm/"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("serve"), budget="16MiB", models=2) as found:
        yield found


def test_answers_do_not_depend_on_swaps(served: Served) -> None:
    alone = {name: served.complete(name, tokens=96) for name in ("m0", "m1")}
    before = served.model("m0")
    with ThreadPoolExecutor(6) as threads:
        names = ["m0", "m1"] * 3
        answers = list(threads.map(lambda name: served.complete(name, tokens=96), names))
    assert answers == [alone[name] for name in names]
    after = served.model("m0")
    assert before is not None and after is not None
    assert after["swap_ins"] - before["swap_ins"] >= 3  # in the middle of its answers


def test_streams_arrive_token_by_token(served: Served) -> None:
    whole = served.complete("m1", tokens=32)
    with served.stream("m1", 32) as events:
        pieces = [choice["text"] for event in events for choice in event["choices"]]
    assert "".join(pieces) == whole
    assert len(pieces) > 8


def test_errors_have_openai_form(served: Served) -> None:
    unknown = served.http.post("/v1/completions", json=served.request("m9", 1))
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"
    malformed = served.http.post("/v1/chat/completions", content=b"{")
    assert malformed.status_code == 400
    assert set(malformed.json()["error"]) >= {"message", "type"}
    listed = served.http.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["m0", "m1"]


def test_an_engines_own_port_is_closed_to_others(served: Served) -> None:
    direct = httpx.post(
        f"http://127.0.0.1:{_port(served, 'm0')}/v1/completions",
        json=served.request("m0", 1),
        timeout=60,
    )
    assert direct.status_code == 401


def test_an_engine_sleeps_until_it_is_woken(served: Served) -> None:
    expected = {name: served.complete(name) for name in ("m0", "m1")}
    base = f"http://127.0.0.1:{_port(served, 'm1')}"
    anew = httpx.Limits(max_keepalive_connections=0)  # vLLM closes one after an error
    with (
        httpx.Client(base_url=base, timeout=60, limits=anew) as m1,
        ThreadPoolExecutor(1) as thread,
    ):
        assert m1.get("/is_sleeping").json() == {"is_sleeping": False}
        for level, tags in ((1, [[]]), (2, [["weights"], ["kv_cache"]])):
            for _ in range(2):
                slept = m1.post("/sleep", params={"level": level})
                assert slept.json() == {"status": "sleeping", "level": level}
            wait_until(lambda: _is_out(served, "m1"), 30)
            before = served.model("m1")
            assert before is not None
            asked = thread.submit(served.complete, "m1")  # waits
            assert served.complete("m0") == expected["m0"]
            assert m1.get("/is_sleeping").json() == {"is_sleeping": True}
            # What needs the model is refused, and the engine lives.
            checked = m1.post("/collective_rpc", json={"method": "compute_weight_checksums"})
            assert checked.status_code == 500
            still = served.model("m1")
            assert still is not None and still["swap_ins"] == before["swap_ins"]
            assert _is_out(served, "m1")
            assert not asked.done()
            for some in tags[:-1]:
                assert m1.post("/wake_up", params={"tags": some}).json()["status"] == "sleeping"
                assert m1.get("/is_sleeping").json() == {"is_sleeping": True}
            assert m1.post("/wake_up", params={"tags": tags[-1]}).json()["status"] == "awake"
            assert asked.result(60) == expected["m1"]
            assert m1.get("/is_sleeping").json() == {"is_sleeping": False}
        paused = m1.post("/sleep", params={"level": 0, "mode": "wait"})
        assert paused.status_code == 200
        released = m1.post("/release_kv_cache_memory")
        assert released.json() == {"status": "kv_cache_released"}
        wait_until(lambda: _is_out(served, "m1"), 30)
        assert m1.post("/wake_up", params={"tags": ["kv_cache"]}).json()["status"] == "awake"
        assert served.complete("m1") == expected["m1"]


def test_a_client_that_leaves_ends_its_request(served: Served) -> None:
    with served.stream("m0", 480) as events:
        next(events)
        wait_until(lambda: _running(served, "m0") == 1, 30)
    wait_until(lambda: _running(served, "m0") == 0, 30)
    assert served.complete("m0")


def test_a_client_that_leaves_while_its_model_waits(served: Served) -> None:
    """The abort reaches an engine whose step waits for the lease, and neither model suffers."""
    expected = served.complete("m1")
    with served.stream("m0", 400) as busy:
        next(busy)
        for _ in range(5):
            with served.stream("m1", 400) as waiting:
                next(waiting)
        wait_until(lambda: _running(served, "m1") == 0, 60)
        assert served.complete("m1") == expected
        assert sum(len(event["choices"]) for event in busy) > 100


def test_an_engine_killed_while_it_holds_the_lease(served: Served) -> None:
    expected = {name: served.complete(name) for name in ("m0", "m1")}
    victim = served.model("m0")
    assert victim is not None
    with served.stream("m0", 480) as events:
        next(events)
        wait_until(lambda: (served.model("m0") or {}).get("state") == "resident", 30)
        os.kill(victim["pid"], signal.SIGKILL)
        killed_s = time.monotonic()
        last = list(events)[-1]
        assert last["error"]["message"]
        assert time.monotonic() - killed_s < 5
    refused = served.http.post("/v1/completions", json=served.request("m0", 1))
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    # The other model goes on at once, with the memory that came back.
    assert served.complete("m1") == expected["m1"]
    daemon = served.status()["daemon"]
    assert daemon["pages_fenced"] == 0
    wait_until(lambda: served.engine("m0")["state"] == "ready", 280)
    assert served.engine("m0")["restarts"] == 1
    reborn = served.model("m0")
    assert reborn is not None and reborn["pid"] != victim["pid"]
    assert {name: served.complete(name) for name in expected} == expected


def test_ctrl_c_leaves_nothing_behind(served: Served) -> None:
    """The last test of the module: it ends the server."""
    pids = _session_processes(served.process.pid)
    assert len(pids) >= 4
    shared = set().union(*map(_shared_memory, pids))
    assert shared
    with served.stream("m0", 480) as events:
        next(events)
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 0
        with pytest.raises((httpx.HTTPError, StopIteration)):
            while True:
                next(events)
    wait_until(lambda: not any(_alive(pid) for pid in pids), 10)
    assert list(served.run_directory.iterdir()) == []
    assert not [path for path in shared if path.exists()]


def test_a_budget_too_small_for_a_model(tmp_path: Path) -> None:
    with runtime_directory() as runtime:
        config = write_config(tmp_path, budget="6MiB", models=1)
        process, log = start(config, tmp_path, runtime)
        assert process.wait(280) == 1
        message = log.read_text()
        assert "needs " in message
        assert "budget is 6291456 bytes" in message
        assert list(runtime.iterdir()) == []


def _shared_memory(pid: int) -> set[Path]:
    """What a process has mapped of shared memory that has a name still."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {Path(line[line.index(_SHARED) :]) for line in maps.splitlines() if _SHARED in line}


def _running(served: Served, name: str) -> float:
    """Requests that the model's own server has running or waiting."""
    metrics = httpx.get(f"http://127.0.0.1:{_port(served, name)}/metrics", timeout=60).text
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in metrics.splitlines()
        if line.startswith(("vllm:num_requests_running{", "vllm:num_requests_waiting{"))
    )


def _is_out(served: Served, name: str) -> bool:
    model = served.model(name)
    return model is not None and model["state"] == "out"


def _port(served: Served, name: str) -> str:
    pid = served.engine(name)["pid"]
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return command[command.index(b"--port") + 1].decode()


def _session_processes(root: int) -> set[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = set(), [root]
    while queue:
        pid = queue.pop()
        found.add(pid)
        queue += children.get(pid, [])
    return found


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
