"""``python -m gpupool.check`` as a command: what it plans, and what it says without a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gpupool
from gpupool.check.parts import (
    BY_NAME_ALONE,
    DEFAULT,
    PARTS,
    SUBJECTS,
    TOGETHER_S,
    Places,
    planned,
)
from gpupool.check.sanitizer import INITCHECK_SUBJECTS

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(
    os.environ.get(
        "GPUPOOL_STANDIN_LIBRARY", ROOT / "build/cpp/tests/cpp/standin/whole/libcuda.so.1"
    )
)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    package = str(Path(gpupool.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "gpupool.check", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": package} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_what_each_part_may_take() -> None:
    assert TOGETHER_S == 480
    assert max(PARTS[name][1] for name in DEFAULT) <= TOGETHER_S
    assert all(limit_s <= 600 for _, limit_s in PARTS.values())
    assert set(PARTS) - set(DEFAULT) == set(BY_NAME_ALONE)
    assert "core" in BY_NAME_ALONE  # it needs no GPU


def test_the_calls_for_a_gpu_that_is_there_for_minutes_run_every_part() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text()
    heading = "## In nine calls"
    section = text.split(heading)[1].split("\n## ")[0]
    asked = (
        r"-m gpupool\.check --parts (\S+)(?: --vllm-sources \.\./vllm-0\.26\.0 \\\n *)?"
        r" --commit \"\$\(cat COMMIT\)\" --out build/gpu-(\d)\n"
    )
    calls, numbers = zip(*re.findall(asked, section), strict=True)
    assert numbers == tuple("123456789") and section.count("gpupool.check --parts") == 9
    assert re.findall(r"\n    # (\d)\. ", section) == list("123456789")
    assert "](#in-nine-calls)" in text and text.count("(#in-") == 1
    named = [call.split(",") for call in calls]
    assert sorted(name for names in named for name in names) == sorted({*PARTS} - {"core"})
    # In half an hour, with what is built and brought there.
    assert sum(PARTS[name][1] for at in (0, 2, 3) for name in named[at]) <= 1320
    for names in named:  # what is installed before takes a minute
        assert sum(PARTS[name][1] for name in names) <= 540
    assert all(f"`{name}`" in text for name in BY_NAME_ALONE)


def test_make_builds_what_is_run() -> None:
    built = (ROOT / "tests/cpp/CMakeLists.txt").read_text()
    listed = re.search(r"add_custom_target\(gpu_programs DEPENDS([^)]*)\)", built)
    assert listed is not None
    assert tuple(each.removesuffix("_test") for each in listed[1].split()) == SUBJECTS


@pytest.mark.parametrize("built", [True, False])
def test_mappings_are_measured_where_that_was_built(
    built: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpupool.check.parts.find_spec", lambda name: name)
    assert "add_dependencies(gpu_programs bench_map)" in (ROOT / "CMakeLists.txt").read_text()
    program, out = tmp_path / "bench_map", tmp_path / "out"
    if built:
        program.touch()
    (part,) = planned(("benchmarks",), Places(ROOT, tmp_path, out))
    mapped = [words for words in part.commands if words[0] == str(program)]
    assert len(part.commands) == 4 + built and len(mapped) == built
    if built:
        assert mapped[0][1:3] == ("--device", "cuda") and part.note == ""
        assert mapped[0][-2:] == ("--json", str(out / "bench_map.json"))
    else:
        assert "without bench_map" in part.note and "make gpu-check" in part.note


def test_initcheck_is_run_on_what_the_stand_in_holds_it_to() -> None:
    built = (ROOT / "tests/cpp/CMakeLists.txt").read_text()
    listed = re.search(r"set\(initcheck_subjects ([^)]*)\)", built)
    assert listed is not None
    assert tuple(listed[1].split()) == INITCHECK_SUBJECTS


def test_every_file_that_a_part_names_is_there(tmp_path: Path) -> None:
    programs = tmp_path / "tests" / "cpp"
    programs.mkdir(parents=True)
    for subject in SUBJECTS:
        (programs / f"{subject}_test").touch()
    named: set[str] = set()
    for part in planned(tuple(PARTS), Places(ROOT, tmp_path, tmp_path, vllm_sources=tmp_path)):
        for words in part.commands:
            named.update(
                word for word in words if word.startswith(("tests/", "benchmarks/", "tools/"))
            )
    assert all((ROOT / name).exists() for name in named), named
    # No test for a GPU is left out.
    files = {f"tests/gpu/{path.name}" for path in (ROOT / "tests/gpu").glob("test_*.py")}
    assert files <= named


def test_a_tree_of_something_else(tmp_path: Path) -> None:
    for part in planned(DEFAULT, Places(tmp_path, tmp_path, tmp_path)):
        assert part.commands == ()
        assert "--tree" in part.skip or "make gpu-check" in part.skip


def test_without_a_gpu() -> None:
    done = command(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.startswith("there is no GPU to check: ")
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


@pytest.mark.parametrize("parts", ["gpu,nonsense", "", "gpu,gpu"])
def test_parts_that_there_are_not(parts: str) -> None:
    done = command("--parts", parts)
    assert done.returncode == 2 and "--parts" in done.stderr


def test_help_names_every_part() -> None:
    done = command("--help")
    assert done.returncode == 0
    for name, (what, _) in PARTS.items():
        assert name in done.stdout and what in done.stdout


@pytest.mark.parametrize("broken", [None, "verify"])
def test_parts_are_run_where_there_is_a_device(broken: str | None, tmp_path: Path) -> None:
    if not STAND_IN.exists():
        pytest.skip(f"no stand-in driver at {STAND_IN}: make test-cpp builds it")
    programs = tmp_path / "tests" / "cpp"
    programs.mkdir(parents=True)
    for subject in SUBJECTS:
        program = programs / f"{subject}_test"
        code = 1 if subject == broken else 0
        program.write_text(f"#!/bin/sh\necho $GPUPOOL_TEST_DRIVER {subject}\nexit {code}\n")
        program.chmod(0o755)
    out = tmp_path / "out"
    arguments = ("--parts", "conformance", "--build", str(tmp_path), "--out", str(out))
    done = command(*arguments, "--commit", "abc", LD_LIBRARY_PATH=str(STAND_IN.parent))
    report = json.loads((out / "report.json").read_text())
    part, log = report["parts"]["conformance"], (out / "conformance.log").read_text()
    assert report["machine"]["commit"] == "abc"
    assert report["is_gpu"] is False and done.stdout.count("NOT A GPU") == 2
    assert "cuda conformance" in log
    if broken is None:
        assert done.returncode == 0 and part["status"] == "passed"
        assert [line.split()[1] for line in log.splitlines() if line.startswith("cuda")] == list(
            SUBJECTS
        )
    else:
        assert done.returncode == 1 and part["status"] == "failed"
        assert part["why"].endswith(f"{broken}_test ended with 1")
        assert f"cuda {broken}" in log and "cuda arena_slots" in log


@pytest.mark.parametrize("asked", [True, False])
def test_nothing_that_ran_is_no_success(asked: bool, tmp_path: Path) -> None:
    if not STAND_IN.exists():
        pytest.skip(f"no stand-in driver at {STAND_IN}: make test-cpp builds it")
    out = tmp_path / "out"
    # A tree of something else, with nothing built.
    arguments = ("--tree", str(tmp_path), "--out", str(out), "--commit", "abc")
    named = ("--parts", "conformance,core") if asked else ()
    done = command(*arguments, *named, LD_LIBRARY_PATH=str(STAND_IN.parent))
    report = json.loads((out / "report.json").read_text())
    assert {part["status"] for part in report["parts"].values()} == {"skipped"}
    assert done.returncode == 3 and "with 3" in " ".join(command("--help").stdout.split())


def test_vllms_own_tests_are_those_of_the_sources_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpupool.check.parts.find_spec", lambda name: name)
    (part,) = planned(("sleep_tests",), Places(ROOT, tmp_path, tmp_path))
    assert part.commands == () and "--vllm-sources" in part.skip
    (part,) = planned(("sleep_tests",), Places(ROOT, tmp_path, tmp_path, vllm_sources=tmp_path))
    (words,) = part.commands
    assert words[1:5] == ("tools/vllm_sleep_tests.py", "--tree", str(tmp_path), "--made")
    # There is a folder `tests` in both.
    assert str(ROOT) not in part.environment["PYTHONPATH"].split(os.pathsep)


def test_the_probe_is_told_what_the_sources_are(tmp_path: Path) -> None:
    (part,) = planned(("probe",), Places(ROOT, tmp_path, tmp_path, "abc"))
    (words,) = part.commands
    assert words[words.index("--commit") + 1] == "abc"
    (part,) = planned(("probe",), Places(ROOT, tmp_path, tmp_path))
    assert "--commit" not in part.commands[0]
