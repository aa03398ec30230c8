"""`gpupool serve` with a policy of requests: real vLLM engines whose turns go by deadlines."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("vllm")

from live_server import Served, serving

from gpupool.cli import main

pytestmark = pytest.mark.timeout(600)

RECORD = "decisions.jsonl"  # beside pool.yaml
GOALS = {"ttft_ms": 200, "tbt_ms": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policy")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    pool = {"policy": "deadlines", "record": RECORD, **GOALS}
    with serving(folder, budget="16MiB", models=2, **pool) as found:
        yield found


def test_answers_do_not_depend_on_turns(served: Served) -> None:
    alone = {name: served.complete(name, tokens=96) for name in ("m0", "m1")}
    before = served.model("m0")
    names = ["m0", "m1"] * 4
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda name: served.complete(name, tokens=96), names))
    assert answers == [alone[name] for name in names]
    after = served.model("m0")
    assert before is not None and after is not None and after["swap_ins"] > before["swap_ins"]


def test_whose_turn_it_was_is_explained(served: Served) -> None:
    (socket_path,) = served.run_directory.rglob("daemon.sock")
    result = CliRunner().invoke(main, ["status", "--socket", str(socket_path), "--why"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("policy: deadlines\n")
    assert "switch to m0 (" in result.output and "switch to m1 (" in result.output
    as_json = CliRunner().invoke(main, ["status", "--socket", str(socket_path), "--why", "--json"])
    assert json.loads(as_json.output)["policy"] == "deadlines"


def test_what_was_decided_is_decided_again(served: Served, folder: Path) -> None:
    """The last test of the module: it ends the server, and with it the recording."""
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(60) == 0
    result = CliRunner().invoke(main, ["replay", str(folder / RECORD), "--json"])
    found = json.loads(result.output)
    assert result.exit_code == 0
    assert found["differing"] == 0 and found["switches"] >= 4 and found["decisions"] >= 30
    lines = (folder / RECORD).read_text().splitlines()
    # The policy knew of each request from the router, and of its tokens from its engine.
    told = [request for line in lines for request in json.loads(line)["state"]["requests"]]
    assert max(made for _, _, _, _, made, _ in told) >= 20
