"""What a check reports, with parts that are run by a fake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.check import checking
from gpupool.check.checking import check, exit_status, readable
from gpupool.check.parts import Part
from gpupool.check.running import FAILED, PASSED, SKIPPED, Outcome

OUTCOMES = st.one_of(
    st.builds(Outcome, st.just(PASSED), took_s=st.floats(0, 100), said=st.text()),
    st.builds(
        Outcome,
        st.just(FAILED),
        why=st.text("abc", min_size=1),
        took_s=st.floats(0, 100),
        said=st.text("ab \n"),
    ),
)


@given(
    drawn=st.lists(st.one_of(OUTCOMES, st.just("not here")), min_size=1, max_size=6),
    is_gpu=st.booleans(),
)
def test_each_part_is_in_the_report_as_it_came_out(
    drawn: list[Outcome | str], is_gpu: bool, tmp_path_factory: object
) -> None:
    out = Path(tmp_path_factory.mktemp("out"))  # type: ignore[attr-defined]
    parts = [
        Part(f"p{index}", "what", 1.0, skip=each if isinstance(each, str) else "")
        for index, each in enumerate(drawn)
    ]
    ran: list[str] = []
    lines: list[str] = []

    def run(part: Part, tree: Path, log: Path) -> Outcome:
        # What is done so far is in the file, in case this one takes the machine down.
        if ran:
            kept = json.loads((out / "report.json").read_text())["parts"]
            assert set(ran) <= kept.keys()
        ran.append(part.name)
        assert log == out / f"{part.name}.log"
        outcome = drawn[int(part.name[1:])]
        assert isinstance(outcome, Outcome)
        return outcome

    report = check(parts, is_gpu, {"gpu": "none"}, out, out, run, lines.append)
    assert json.loads((out / "report.json").read_text()) == report
    assert list(report["parts"]) == [part.name for part in parts]
    assert ran == [part.name for part in parts if not part.skip]
    text = readable(report, out)
    assert report["is_gpu"] == is_gpu
    for end in (text.splitlines()[0], text.splitlines()[-1]):
        assert end.startswith("NOT A GPU") != is_gpu
    for part, each, line in zip(parts, drawn, lines, strict=True):
        entry = report["parts"][part.name]
        expected = Outcome(SKIPPED, each) if isinstance(each, str) else each
        assert (entry["status"], entry["why"]) == (expected.status, expected.why)
        assert line in text and expected.status in line and expected.why in line
    statuses = [entry["status"] for entry in report["parts"].values()]
    for by_name in (True, False):
        code = exit_status(report, by_name)
        assert (code == 1) == (FAILED in statuses)
        if by_name:
            assert (code == 0) == ({*statuses} == {PASSED})
        else:
            assert (code == 3) == ({*statuses} == {SKIPPED})
        assert code in (0, 1, 3)
    assert f"{statuses.count(FAILED)} failed" in text


def test_all_together_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, limits_s = 100.0, list[float]()
    monkeypatch.setattr(checking.time, "monotonic", lambda: now_s)

    def run(part: Part, *_: Path) -> Outcome:
        nonlocal now_s
        limits_s.append(part.limit_s)
        now_s += part.limit_s
        return Outcome(PASSED)

    parts = [Part(name, "what", 40.0) for name in ("a", "b", "c")]
    parts.append(Part("d", "what", 40.0, skip="there is none"))
    report = check(parts, True, {}, tmp_path, tmp_path, run, print, 60.0)
    assert limits_s == [40.0, 20.0]
    assert report["parts"]["c"]["why"] == "the 60 s for all are over: ask for it by name"
    assert report["parts"]["d"]["why"] == "there is none"
    assert exit_status(report, by_name=False) == 0
