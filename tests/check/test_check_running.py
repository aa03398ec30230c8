"""Parts as they are really run: processes that pass, fail, die, and go on for ever."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.check.checking import check
from gpupool.check.parts import Part
from gpupool.check.running import FAILED, PASSED, run_part


def shell(*lines: str, limit_s: float = 60.0, name: str = "gpu", **environment: str) -> Part:
    commands = tuple(("sh", "-c", line) for line in lines)
    return Part(name, "what", limit_s, commands, environment)


def test_what_passes_leaves_its_output(tmp_path: Path) -> None:
    log = tmp_path / "log"
    part = shell("echo one $WORD; pwd", "echo two >&2", WORD="said")
    outcome = run_part(part, tmp_path, log)
    assert outcome.status == PASSED and outcome.why == ""
    assert outcome.said == log.read_text()
    assert [line for line in outcome.said.splitlines() if not line.startswith("$")] == [
        "one said",
        str(tmp_path),
        "two",
    ]


def test_what_fails_does_not_keep_the_next(tmp_path: Path) -> None:
    part = shell("echo one", "exit 3", "touch third", "exit 4")
    outcome = run_part(part, tmp_path, tmp_path / "log")
    assert outcome.status == FAILED
    assert outcome.why == "sh -c 'exit 3' ended with 3; sh -c 'exit 4' ended with 4"
    assert (tmp_path / "third").exists()


def test_a_signal_is_named(tmp_path: Path) -> None:
    outcome = run_part(shell("kill -SEGV $$"), tmp_path, tmp_path / "log")
    assert outcome.status == FAILED and outcome.why.endswith("was ended by SIGSEGV")


def test_at_its_limit_all_that_it_started_is_ended(tmp_path: Path) -> None:
    # It and its child hold a pipe open, and neither ends by itself.
    os.mkfifo(tmp_path / "held")
    held = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    part = shell("exec 3>held; sleep 600 & echo before; wait", "touch second", limit_s=2.0)
    outcome = run_part(part, tmp_path, tmp_path / "log")
    assert outcome.status == FAILED and outcome.why.startswith("over its 2 s, in sh -c")
    assert outcome.why.endswith("no time was left for sh -c 'touch second'")
    assert not (tmp_path / "second").exists()
    assert "before" in outcome.said
    os.set_blocking(held, True)
    assert os.read(held, 1) == b""  # nobody holds it any more
    os.close(held)


@pytest.mark.parametrize(("name", "why"), [("conformance", "found no device"), ("gpu", "with 77")])
def test_a_test_that_skips_itself_has_not_passed(name: str, why: str, tmp_path: Path) -> None:
    outcome = run_part(shell("exit 77", name=name), tmp_path, tmp_path / "log")
    assert outcome.status == FAILED and outcome.why.endswith(why)


def test_only_the_end_of_much_output_is_in_the_report(tmp_path: Path) -> None:
    code = "print('x' * 100000); print('the end')"
    part = Part("gpu", "what", 60.0, ((sys.executable, "-c", code),), dict(os.environ))
    outcome = run_part(part, tmp_path, tmp_path / "log")
    assert len(outcome.said) == 3000 and outcome.said.endswith("the end\n")
    assert (tmp_path / "log").stat().st_size > 100000


def writing(path: Path, text: str) -> tuple[str, ...]:
    return ("sh", "-c", 'printf %s "$0" >"$2"', text, "--json", str(path))


FIGURES = st.recursive(
    st.one_of(st.none(), st.integers(-(2**53), 2**53), st.text("abc", max_size=4)),
    lambda each: st.one_of(st.lists(each), st.dictionaries(st.text("abc"), each)),
    max_leaves=8,
)


@given(found=st.lists(FIGURES, min_size=1, max_size=3), fails=st.booleans())
@settings(max_examples=20)
def test_figures_are_in_the_report(found: list[object], fails: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        commands = [
            writing(out / f"p{index}.json", json.dumps(each)) for index, each in enumerate(found)
        ]
        commands += [("sh", "-c", "exit 1")] if fails else []
        outcome = run_part(Part("gpu", "what", 60.0, tuple(commands)), out, out / "log")
        assert outcome.status == (FAILED if fails else PASSED)
        assert outcome.figures == {f"p{index}": each for index, each in enumerate(found)}
        report = check([Part("gpu", "what", 1.0)], True, {}, out, out, lambda *_: outcome, print)
        assert json.loads((out / "report.json").read_text()) == report
        assert report["parts"]["gpu"]["figures"] == outcome.figures


def test_figures_that_are_not_there_or_cannot_be_taken_in(tmp_path: Path) -> None:
    old, half, large = (tmp_path / f"{name}.json" for name in ("old", "half", "large"))
    old.write_text("[1]")
    commands = (
        ("sh", "-c", "exit 0", "--json", str(old)),
        writing(half, '{"a": [1,'),
        ("sh", "-c", 'head -c 300000 /dev/zero >"$1"', "--json", str(large)),
        ("sh", "-c", "echo the next"),
    )
    outcome = run_part(Part("gpu", "what", 60.0, commands), tmp_path, tmp_path / "log")
    assert outcome.status == PASSED and "the next" in outcome.said
    assert outcome.figures == {
        "half": outcome.figures["half"],
        "large": f"300000 bytes, in {large}",
    }
    assert outcome.figures["half"].startswith(f"{half} cannot be read: ")


@pytest.mark.parametrize("complete", [True, False, None])
@pytest.mark.parametrize("code", [0, 1])
def test_figures_that_are_not_whole_are_no_success(
    complete: bool | None, code: int, tmp_path: Path
) -> None:
    into = tmp_path / "swaps.json"
    told = {} if complete is None else {"complete": complete}
    script = f"echo '{json.dumps(told | {'swaps': 7})}' >\"$1\"; exit {code}"
    command = ("sh", "-c", script, "--json", str(into))
    part = Part("engine_swaps", "what", 60.0, (command,))
    outcome = run_part(part, tmp_path, tmp_path / "log")
    assert outcome.figures["swaps"]["swaps"] == 7
    assert (outcome.status == PASSED) == (code == 0 and complete is not False)
    assert ("the figures of swaps are not whole" in outcome.why) == (complete is False)


def test_what_was_reached_at_the_limit_is_reported_as_not_whole(tmp_path: Path) -> None:
    written = json.dumps({"complete": False, "swaps": 7})
    script = f"echo '{written}' >\"$1\"; sleep 600"
    command = ("sh", "-c", script, "--json", str(tmp_path / "swaps.json"))
    part = Part("engine_swaps", "what", 2.0, (command,))
    outcome = run_part(part, tmp_path, tmp_path / "log")
    assert outcome.status == FAILED and outcome.why.startswith("over its 2 s")
    assert outcome.why.endswith("the figures of swaps are not whole")
    assert outcome.figures["swaps"] == {"complete": False, "swaps": 7}
