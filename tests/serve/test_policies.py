"""The parts of serving that are pure: life and restarts, events, logs, progress."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gpupool.serve import lifecycle, logs
from gpupool.serve.events import EventAligner
from gpupool.serve.forward import end_to_end
from gpupool.serve.lifecycle import Life, Phase, RestartPolicy
from gpupool.serve.progress import LineReporter, TerminalReporter

POLICY = RestartPolicy(first_delay_s=1.0, max_delay_s=8.0, max_restarts=3, window_s=100.0)
READY = lifecycle.become_ready(lifecycle.start(Life()))


def restarted(life: Life, now_s: float) -> Life:
    return lifecycle.become_ready(lifecycle.start(lifecycle.die(life, POLICY, now_s)))


def test_delays_double_up_to_the_limit_and_then_the_engine_has_failed() -> None:
    life, delays = READY, []
    for death in range(3):
        dead = lifecycle.die(life, POLICY, float(death))
        delays.append(dead.delay_s)
        assert dead.phase is Phase.BACKING_OFF
        life = lifecycle.become_ready(lifecycle.start(dead))
    assert delays == [1.0, 2.0, 4.0]
    assert lifecycle.die(life, POLICY, 3.0).phase is Phase.FAILED


def test_deaths_before_the_window_are_forgotten() -> None:
    life = READY
    for death in range(20):
        life = restarted(life, death * 60.0)
    assert life.restarts == 20
    assert lifecycle.die(life, POLICY, 1e6).delay_s == 1.0


def test_an_engine_that_never_was_ready_is_not_tried_again() -> None:
    assert lifecycle.die(lifecycle.start(Life()), POLICY, 0.0).phase is Phase.FAILED


def test_a_death_while_restarting_counts() -> None:
    life = READY
    for now_s in range(3):
        life = lifecycle.start(lifecycle.die(life, POLICY, float(now_s)))
    assert lifecycle.die(life, POLICY, 4.0).phase is Phase.FAILED


@given(st.lists(st.floats(0.0, 50.0), max_size=30))
def test_never_more_restarts_in_a_window_than_allowed(gaps_s: list[float]) -> None:
    life, now_s, starts = READY, 0.0, []
    for gap_s in gaps_s:
        now_s += gap_s
        life = lifecycle.die(life, POLICY, now_s)
        if life.is_over:
            break
        assert 0 < life.delay_s <= POLICY.max_delay_s
        starts.append(now_s)
        life = lifecycle.become_ready(lifecycle.start(life))
        assert sum(now_s - t < POLICY.window_s for t in starts) <= POLICY.max_restarts


@given(st.integers(1, 10**6))
def test_delays_never_overflow(deaths: int) -> None:
    assert POLICY.delay_s(deaths) <= POLICY.max_delay_s


def test_nothing_follows_the_stop() -> None:
    stopped = lifecycle.stop(READY)
    assert lifecycle.stop(stopped) == stopped
    with pytest.raises(ValueError, match="cannot become"):
        lifecycle.start(stopped)


EVENTS = st.lists(
    st.tuples(st.sampled_from([b"data: x", b"data: {}", b": ping\nid: 7"]),
              st.sampled_from([b"\n\n", b"\r\n\r\n"])),
    max_size=6,
)  # fmt: skip


@given(EVENTS, st.binary(max_size=5), st.data())
def test_events_pass_whole_however_they_are_cut(
    events: list[tuple[bytes, bytes]], tail: bytes, data: st.DataObject
) -> None:
    whole = b"".join(text + end for text, end in events)
    stream = whole + (tail := tail.replace(b"\n", b"").replace(b"\r", b""))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    aligner, sent = EventAligner(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        ready = aligner.feed(stream[start:end])
        assert not ready or ready.endswith((b"\n\n", b"\r\n\r\n"))
        sent.append(ready)
        # Nothing that is complete is held back.
        complete = stream[:end]
        reach = max(complete.rfind(b"\n\n") + 2, complete.rfind(b"\r\n\r\n") + 4)
        assert sum(map(len, sent)) == (reach if reach > 3 or complete[:2] == b"\n\n" else 0)
    assert b"".join(sent) == whole
    assert aligner.rest() == tail


def test_headers_of_one_hop_are_not_passed_on() -> None:
    headers = [(b"Connection", b"close, X-Mine"), (b"x-mine", b"1"), (b"TE", b"trailers"),
               (b"Host", b"h"), (b"Accept", b"a"), (b"accept", b"b")]  # fmt: skip
    passed = end_to_end(headers, frozenset({b"host"}))
    assert passed == [(b"accept", b"a"), (b"accept", b"b")]


LOG = """\x1b[1;36m(EngineCore pid=7)\x1b[0;0m ERROR 11-21 08:00:00 [core.py:1] Traceback
(EngineCore pid=7) ERROR 11-21 08:00:00 [core.py:1] safetensors.SafetensorError: header too small
(APIServer pid=3) Traceback (most recent call last):
(APIServer pid=3) RuntimeError: Engine core initialization failed. See root cause above.
"""


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (LOG, "SafetensorError: header too small"),
        ("INFO 11-21 [a.py:1] fine\nERROR 11-21 [a.py:2] no room\nbye\n", "no room"),
        ("api_server.py: error: unrecognized arguments: --x\n", "unrecognized arguments: --x"),
        ("torch.OutOfMemoryError: none left\nlater\n", "OutOfMemoryError: none left"),
        ("Killed\n\n", "Killed"),
        ("", "it wrote nothing"),
    ],
)
def test_the_reason_in_a_log(tmp_path: Path, log: str, reason: str) -> None:
    (tmp_path / "log").write_text(log)
    assert logs.reason(logs.tail(tmp_path / "log")) == reason


def test_logs_are_read_from_an_offset_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert logs.tail(path) == [] and logs.size_bytes(path) == 0
    path.write_text("old\nnew\n")
    assert logs.tail(path, 4) == ["new"]
    logs.bound(path, limit_bytes=8)
    assert logs.size_bytes(path) == 8
    logs.bound(path, limit_bytes=7)
    assert logs.size_bytes(path) == 0
    path.write_text("x\n")
    assert logs.tail(path, 4) == ["x"]


def test_a_log_is_saved_where_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").write_text("why\n")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    saved = logs.save(tmp_path / "log", "../org/model")
    assert saved.read_text() == "why\n" and saved.parent == tmp_path / "state" / "gpupool"
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert logs.save(tmp_path / "log", "model").read_text() == "why\n"


def test_lines_tell_each_change_and_now_and_then_the_rest() -> None:
    out, err, now = io.StringIO(), io.StringIO(), [0.0]
    lines = LineReporter(out, err, clock=lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        lines.engine("a", Phase.STARTING, f"line {second}")
    lines.engine("a", Phase.READY, "")
    lines.ready("http://h:1")
    lines.error("no")
    assert out.getvalue().splitlines() == [
        "a: starting: line 0",
        "a: starting (10 s): line 10",
        "a: starting (20 s): line 20",
        "a: ready",
        "gpupool ready: http://h:1",
    ]
    assert err.getvalue() == "gpupool: no\n"


def test_a_terminal_shows_each_engine_and_then_the_address() -> None:
    shown, out = io.StringIO(), io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    reporter = TerminalReporter(console, LineReporter(out, out))
    reporter.engine("[a]", Phase.STARTING, "loading [bold]weights")
    reporter.engine("[a]", Phase.READY, "")
    reporter.ready("http://h:1")
    reporter.engine("[a]", Phase.BACKING_OFF, "it died")
    reporter.error("no")
    reporter.close()
    assert "[a]" in shown.getvalue() and "ready" in shown.getvalue()
    assert out.getvalue().splitlines() == [
        "gpupool ready: http://h:1",
        "[a]: restarting: it died",
        "gpupool: no",
    ]


def test_json_lines() -> None:
    out = io.StringIO()
    lines = LineReporter(out, out, as_json=True)
    lines.engine("a", Phase.STARTING, "")
    lines.ready("http://h:1")
    lines.stopping()
    lines.error("no")
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["engine", "ready", "stopping", "error"]
    assert events[0]["state"] == "starting" and events[1]["url"] == "http://h:1"
