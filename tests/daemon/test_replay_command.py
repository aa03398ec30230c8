"""``gpupool replay``: recordings, whole, cut and changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conducted_bench import Asked, Live
from hypothesis import given
from hypothesis import strategies as st

from gpupool.cli import main
from gpupool.schedule.explaining import explain
from gpupool.schedule.recording import decode, decode_actions, from_line, to_line
from gpupool.schedule.timeline import trace_events
from gpupool.schedule.work import Goals


@pytest.fixture(scope="module", params=["deadlines", "fcfs"])
def lines(request: pytest.FixtureRequest) -> list[str]:
    live = Live(2, {"a": 2, "b": 2, "c": 1}, request.param, Goals(1.0, 0.1))
    for k, name in enumerate("abcab"):
        live.ask(Asked(f"request{k}", name, 0.1 * k, 30))
    live.run(600.0)
    return [to_line(request.param, decided) for decided in live.decided]


def replay(path: Path, *options: str) -> Result:
    result = CliRunner().invoke(main, ["replay", str(path), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_the_same_comes_out_again(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_text("".join(lines))
    result = replay(path, "--json")
    found = json.loads(result.output)
    assert result.exit_code == 0
    assert found["decisions"] == len(lines) and found["switches"] >= 3
    assert found["differing"] == 0


def test_what_comes_out_otherwise_is_named(lines: list[str], tmp_path: Path) -> None:
    """Each number that a decision was about, changed, changes the decision or not; never both."""
    path = tmp_path / "decisions.jsonl"
    place = next(k for k, line in enumerate(lines) if '"Switch"' in line)
    fields = json.loads(lines[place])
    fields["actions"][-1][0] = "Rest"
    lines = [*lines[:place], json.dumps(fields) + "\n", *lines[place + 1 :]]
    path.write_text("".join(lines))
    result = replay(path)
    assert result.exit_code == 1
    assert "1 decided otherwise now" in result.output
    assert f"decision {place + 1}: " in result.output


def test_a_trace_has_turns_and_their_reasons(lines: list[str], tmp_path: Path) -> None:
    path, trace = tmp_path / "decisions.jsonl", tmp_path / "trace.json"
    path.write_text("".join(lines))
    assert replay(path, "--trace", str(trace)).exit_code == 0
    events = json.loads(trace.read_text())["traceEvents"]
    names = {event["name"] for event in events}
    assert {"a", "b", "c", "switch to a", "switch to b", "switch to c"} <= names
    assert all(event["args"]["why"] for event in events if event["name"].startswith("switch"))
    ends_us = 0
    for event in events:  # one after the other
        assert event["ts"] >= ends_us - 1 and event["dur"] >= 0
        ends_us = event["ts"] + event["dur"]


def test_a_trace_has_every_decision_that_can_be_explained(lines: list[str]) -> None:
    recording = [from_line(line)[1] for line in lines]
    reasons = []
    for decided in recording:
        state, names = decode(decided.state), dict(decided.names)
        actions = decode_actions(state, decided)
        found = (explain(state, decided.now_s, action, names.__getitem__) for action in actions)
        reasons += [why for why in found if why is not None]
    drawn = [event["args"]["why"] for event in trace_events(recording) if event["args"]["why"]]
    assert drawn == reasons


def test_a_file_that_cannot_be_written(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_text("".join(lines))
    result = replay(path, "--trace", str(tmp_path / "no" / "trace.json"))
    assert result.exit_code == 1 and "cannot be written" in result.output


@given(st.data())
def test_damaged_recordings_get_one_sentence(
    lines: list[str], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "decisions.jsonl"
    text = data.draw(st.sampled_from(lines))
    at = data.draw(st.integers(0, len(text) - 1))
    change = data.draw(st.sampled_from(["", "0", "9", "[", '"x"', "null", "-", "1e999", "{}"]))
    path.write_text(text[:at] + change + text[at + data.draw(st.integers(0, 5)) :])
    result = replay(path, "--trace", str(path.with_suffix(".json")))
    assert result.exit_code in (0, 1)
    assert "Traceback" not in result.output


def test_a_line_that_was_cut_off_is_said_and_left_out(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_text("".join(lines)[:-20])
    result = replay(path)
    assert result.exit_code == 0
    assert f"line {len(lines)}: is cut off" in result.output
    assert f"{len(lines) - 1} decisions" in result.output


def test_lines_are_what_was_decided(lines: list[str]) -> None:
    for line in lines:
        policy, decided = from_line(line)
        assert to_line(policy, decided) == line


def test_what_is_no_text_gets_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(bytes(range(128, 256)) + b"\n")
    result = replay(path)
    assert result.exit_code == 1 and "line 1: is no decision" in result.output


def test_a_trace_names_the_line_that_it_cannot_draw(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    place = next(k for k, line in enumerate(lines) if '"Switch"' in line)
    fields = json.loads(lines[place])
    fields["actions"].append(["Rest"])
    path.write_text("".join([*lines[:place], json.dumps(fields) + "\n", *lines[place + 1 :]]))
    result = replay(path, "--trace", str(tmp_path / "trace.json"))
    assert result.exit_code == 1
    assert f"line {place + 1}: is no decision" in result.output
    assert not (tmp_path / "trace.json").exists()
