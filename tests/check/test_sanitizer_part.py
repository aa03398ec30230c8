"""What is run under compute-sanitizer, with a script in its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.check import parts, sanitizer
from gpupool.check.parts import SUBJECTS, Part, Places, planned
from gpupool.check.running import FAILED, PASSED, Outcome, run_part

ROOT = Path(__file__).resolve().parents[2]

# Takes options of two words each, runs its target, and reports as the tool does.
SCRIPT = """#!/bin/sh
if [ "$1" = --version ]; then
  printf 'NVIDIA (R) Compute Sanitizer\\nVersion %s (build 1) (public-release)\\n' "$FAKE_VERSION"
  exit
fi
tool=
while [ "${1#--}" != "$1" ]; do
  [ "$1" = --tool ] && tool=$2
  [ "$1" = --error-exitcode ] && errors=$2
  shift 2
done
[ -n "$FAKE_SILENT" ] && exec "$@"
echo "========= COMPUTE-SANITIZER"
"$@"
code=$?
case "$tool $*" in
  $FAKE_WRONG)
    echo "========= Invalid __global__ read of size 4 bytes"
    echo "=========     at gpupool_digest+0x160"
    echo "========= ERROR SUMMARY: 2 errors"
    [ $code = 0 ] && code=$errors ;;
  *) echo "========= ERROR SUMMARY: 0 errors" ;;
esac
exit $code
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """The script on the path, and programs of the core that say which driver they run on."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "compute-sanitizer"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_VERSION", "2026.4.0.0")
    monkeypatch.setattr(parts, "find_spec", lambda _: object())
    programs = tmp_path / "build" / "tests" / "cpp"
    programs.mkdir(parents=True)
    for subject in SUBJECTS:
        program = programs / f"{subject}_test"
        program.write_text(f"#!/bin/sh\necho {subject} on $GPUPOOL_TEST_DRIVER\nexit $FAKE_CODE\n")
        program.chmod(0o755)
    return Places(ROOT, tmp_path / "build", tmp_path)


def of(places: Places) -> Part:
    (part,) = planned(("sanitizer",), places)
    return part


def of_core(part: Part, **environment: str) -> Part:
    """Without the tests that need torch and a GPU."""
    commands = tuple(each for each in part.commands if sanitizer.KERNEL_TESTS not in each)
    return Part(
        part.name,
        part.what,
        60.0,
        commands,
        part.environment | environment,
        judge=part.judge,
        note=part.note,
    )


def test_the_plan(places: Places) -> None:
    part = of(places)
    assert part.skip == part.note == ""
    assert part.environment["GPUPOOL_TEST_DRIVER"] == "cuda"
    assert part.environment["GPUPOOL_REQUIRE_GPU"] == "1"
    tools: dict[str, list[str]] = {"memcheck": [], "initcheck": []}
    for words in part.commands:
        assert words[0] == str(places.out / "bin" / "compute-sanitizer")
        assert words[words.index("--error-exitcode") + 1] == str(sanitizer.ERRORS_EXIT)
        tools[words[words.index("--tool") + 1]].append(words[-1])
        assert ("--padding" in words) == ("memcheck" in words and words[-1].endswith(".py"))
    for tool, subjects in (
        ("memcheck", sanitizer.SUBJECTS),
        ("initcheck", sanitizer.INITCHECK_SUBJECTS),
    ):
        ran = [Path(path).name.removesuffix("_test") for path in tools[tool]]
        assert ran == ["test_gpu_kernels.py", *subjects]
        assert set(subjects) <= set(SUBJECTS)
    # What may never end must not take the time of others.
    assert part.commands[-1][-1].endswith("conformance_test")


def test_every_target_runs_and_is_judged(places: Places, tmp_path: Path) -> None:
    outcome = run_part(of_core(of(places), FAKE_CODE="0"), tmp_path, tmp_path / "log")
    assert (outcome.status, outcome.why) == (PASSED, "")
    said = (tmp_path / "log").read_text()
    for subject in sanitizer.SUBJECTS:
        times = 1 + (subject in sanitizer.INITCHECK_SUBJECTS)
        assert said.count(f"{subject} on cuda\n") == times


def ran(places: Places, tmp_path: Path, **environment: str) -> Outcome:
    return run_part(of_core(of(places), **environment), tmp_path, tmp_path / "log")


def test_errors_fail_it_and_are_named(places: Places, tmp_path: Path) -> None:
    wrong = "initcheck */verify_test"
    outcome = ran(places, tmp_path, FAKE_CODE="0", FAKE_WRONG=wrong)
    assert outcome.status == FAILED
    assert outcome.why == (
        "initcheck of verify_test: 2 errors: Invalid __global__ read of size 4 bytes"
    )


def test_a_target_that_fails_has_not_passed(places: Places, tmp_path: Path) -> None:
    outcome = ran(places, tmp_path, FAKE_CODE="77")
    assert outcome.status == FAILED
    assert outcome.why.count("ended with 77") == len(of_core(of(places)).commands)


def test_a_tool_that_checks_nothing_has_not_passed(places: Places, tmp_path: Path) -> None:
    outcome = ran(places, tmp_path, FAKE_CODE="0", FAKE_SILENT="1")
    assert outcome.status == FAILED
    assert "memcheck of verify_test says nothing of errors: it checked nothing" in outcome.why


@pytest.mark.parametrize("version", ["2026.3.1", "2025.4.1.0", "1.0", "nonsense"])
def test_an_older_one_runs_memcheck_alone_and_says_so(
    version: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VERSION", version)
    part = of(places)
    assert not any("initcheck" in words for words in part.commands)
    assert len(part.commands) == 1 + len(sanitizer.SUBJECTS)
    outcome = run_part(of_core(part, FAKE_CODE="0"), tmp_path, tmp_path / "log")
    assert outcome.status == PASSED
    assert outcome.why.startswith("without initcheck: compute-sanitizer is of ")
    assert outcome.why.endswith("and it is right from 2026.4 on")
    known = version != "nonsense"
    assert (".".join(version.split(".")[:2]) in outcome.why) == known


def test_without_a_toolkit(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"PATH": str(tmp_path), "CUDA_HOME": "", "CUDA_PATH": str(tmp_path / "cuda")}
    assert sanitizer.find(nothing, tmp_path / "none").program == ""
    for home in (nothing | {"CUDA_HOME": str(tmp_path)}, nothing | {"CUDA_PATH": str(tmp_path)}):
        assert sanitizer.find(home, tmp_path / "none").version == (2026, 4)
    assert sanitizer.find(nothing | {"CUDA_PATH": ""}, tmp_path).version == (2026, 4)
    monkeypatch.setattr(sanitizer, "find", lambda _: sanitizer.Sanitizer(""))
    part = of(places)
    assert part.commands == () and part.skip.startswith("there is no compute-sanitizer: put ")


def test_without_programs_or_packages(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "make gpu-check builds them" in of(Places(ROOT, tmp_path / "none", tmp_path)).skip
    assert "--tree" in of(Places(tmp_path, places.build, tmp_path)).skip
    monkeypatch.setattr(parts, "find_spec", lambda name: None if name == "triton" else object())
    assert of(places).skip == "not installed: triton"


@given(
    code=st.integers(-31, 255),
    errors=st.none() | st.integers(0, 10**6),
    before=st.text(),  # a target says what it likes
    after=st.text(),
)
def test_only_a_report_without_errors_passes(
    code: int, errors: int | None, before: str, after: str
) -> None:
    word = "error" if errors == 1 else "errors"
    summary = "" if errors is None else f"\n========= ERROR SUMMARY: {errors} {word}\n"
    command = ("compute-sanitizer", "--tool", "memcheck", "/somewhere/warm_test")
    output = f"========= COMPUTE-SANITIZER\n{before}{summary}{after}"
    said = sanitizer.judge(command, code, output)
    assert (said == "") == (code == 0 and errors == 0)
    if errors:
        assert said.startswith(f"memcheck of warm_test: {errors} {word}")


def test_what_pytest_says_is_not_what_the_tool_says() -> None:
    output = (
        "========= COMPUTE-SANITIZER\n"
        "==================================== ERRORS ====================================\n"
        "=========================== short test summary info ============================\n"
        "========= Program hit an error\n"
        "=========     Saved host backtrace\n"
        "========= ERROR SUMMARY: 0 errors\n"
    )
    said = sanitizer.judge(("compute-sanitizer", "--tool", "initcheck", "a/b.py"), 1, output)
    assert said == "initcheck of b.py ended with 1: Program hit an error"
