"""gcov as gcovr calls it, with the throws named among what was never executed.

gcov before version 14 says of a branch that was reached whether it is the one that an exception
takes: "branch 2 taken 0 (throw)". Of a branch in code that never ran it says "branch 2 never
executed" and no more, so that gcovr --exclude-throw-branches would count it. gcov's own JSON, which
gcovr does not read from these versions, says it of every branch.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LINE = re.compile(r" *[^ :]+: *(\d+):")
BRANCH = re.compile(r"branch +\d+ (?:taken (\d+)|never executed)")

# Of a line and how often each of its branches was taken: which of them are throws.
Throws = dict[tuple[int, tuple[int, ...]], list[bool]]


def throws_of(described: dict[str, Any]) -> Throws:
    """The throws of one file, as gcov's JSON describes it."""
    found: Throws = {}
    for line in described["lines"]:
        counts = tuple(branch["count"] for branch in line["branches"])
        found[line["line_number"], counts] = [branch["throw"] for branch in line["branches"]]
    return found


def marked(text: str, throws: Throws) -> str:
    """The text of one file, with " (throw)" behind branches never executed that are one."""
    lines = text.splitlines()
    for number, at in _branches(lines):
        counts = tuple(int(BRANCH.sub(r"\1", lines[i]).partition(" ")[0] or 0) for i in at)
        for i, is_throw in zip(at, throws.get((number, counts), []), strict=False):
            if is_throw and lines[i].endswith("never executed"):
                lines[i] += " (throw)"
    return "\n".join(lines) + "\n"


def _branches(lines: list[str]) -> Iterator[tuple[int, list[int]]]:
    """Each time a source line is shown: its number, and where in the text its branches are."""
    number, at = 0, list[int]()
    for i, line in enumerate(lines):
        if start := LINE.match(line):
            yield number, at
            number, at = int(start[1]), []
        elif BRANCH.match(line):
            at.append(i)
    yield number, at


def main() -> int:
    """Run gcov with the arguments given, then mark what it wrote; returns its exit status."""
    command = [os.environ.get("GCOV", "gcov"), *sys.argv[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    sys.stdout.write(done.stdout)
    written = [Path(name) for name in re.findall(r"Creating '(.*\.gcov)'", done.stdout)]
    if not written:
        return done.returncode
    report = subprocess.run(
        [*command, "--json-format", "--stdout"], stdout=subprocess.PIPE, text=True, check=True
    )
    throws: dict[str, Throws] = {}
    for document in filter(None, report.stdout.splitlines()):
        for described in json.loads(document)["files"]:
            throws.setdefault(described["file"], {}).update(throws_of(described))
    for path in written:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        source = text.partition("0:Source:")[2].partition("\n")[0]
        path.write_text(marked(text, throws[source]), encoding="utf-8", errors="surrogateescape")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
