"""How coverage is counted: throws named where nothing ran, too little a failure."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SOURCE = """
#include <stdexcept>
#include <string>
#include <vector>

std::string name(int n) {
  if (n < 0) throw std::invalid_argument("negative: " + std::to_string(n));
  return n == 0 ? std::string("none") : "some " + std::to_string(n);
}

int never(const std::vector<int>& all) {
  std::vector<std::string> names;
  for (int n : all) {
    if (n > 3 && n < 9) names.push_back(name(n) + name(-n));
  }
  try {
    return static_cast<int>(name(static_cast<int>(names.size())).size());
  } catch (const std::exception&) {
    return all.empty() ? -1 : all.front();
  }
}

int main(int count, char**) { return count > 5 ? never({}) : static_cast<int>(name(0).size()) - 4; }
"""


@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("gcov")), reason="no gcc")
def test_the_throws_named_are_those_of_gcovs_own_json(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text(SOURCE)

    def run(*command: str) -> None:
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    run("g++", "-O0", "--coverage", "-o", "a", "a.cpp")
    run("./a")
    (data,) = tmp_path.glob("*.gcda")
    run("gcov", "--json-format", "--branch-probabilities", data.name)
    (report,) = tmp_path.glob("*.json.gz")
    (described,) = (
        one
        for one in json.loads(gzip.decompress(report.read_bytes()))["files"]
        if one["file"] == "a.cpp"
    )
    expected = {
        line["line_number"]: sorted(branch["throw"] for branch in line["branches"])
        for line in described["lines"]
        if line["branches"]
    }
    options = ["--branch-counts", "--branch-probabilities", "--all-blocks"]
    run(sys.executable, str(ROOT / "tools" / "gcov_throws.py"), *options, data.name)
    found: dict[int, list[bool]] = {}
    number = 0
    for line in (tmp_path / "a.cpp.gcov").read_text().splitlines():
        if line.startswith("branch"):
            found.setdefault(number, []).append(line.endswith("(throw)"))
        elif (parts := line.split(":"))[1:] and parts[1].strip().isdigit():
            number = int(parts[1])
    assert {number: sorted(throws) for number, throws in found.items()} == expected
    assert sum(map(sum, expected.values())) > 10


@pytest.mark.parametrize(
    ("lines", "branches", "line", "status"),
    [
        ((1000, 1000), (950, 1000), "lines=100.0% branches=95.0%", 0),
        ((949999, 1000000), (1, 1), "lines=94.9% branches=100.0%", 1),
        ((1, 1), (94, 100), "lines=100.0% branches=94.0%", 1),
    ],
)
def test_too_little_is_printed_and_is_a_failure(
    tmp_path: Path, lines: tuple[int, int], branches: tuple[int, int], line: str, status: int
) -> None:
    summary = tmp_path / "summary.json"
    counts = zip(("line", "branch"), (lines, branches), strict=True)
    described = {
        f"{name}_{what}": count
        for name, pair in counts
        for what, count in zip(("covered", "total"), pair, strict=True)
    }
    summary.write_text(json.dumps(described))
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "coverage_line.py", summary, "95"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == (line + "\n", status)
