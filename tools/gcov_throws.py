"""gcov as gcovr calls it, with the throws named among what was never executed.

gcov before version 14 says of a branch that was taken, or could have been, whether it is the one
that an exception takes: "branch 2 taken 0 (throw)". Of a branch in code that never ran it says only
"branch 2 never executed", and gcovr --exclude-throw-branches would count it. In a block that ends
with a call the first branch is where the call returns to; every other is where it throws to.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"^ *[^ :]+: *\d+-block +\d+$")
LINE = re.compile(r"^ *[^ :]+: *\d+:")
NEVER = re.compile(r"^branch +\d+ never executed$")


def marked(text: str) -> str:
    """The same text, with " (throw)" behind branches never executed that are one."""
    lines = []
    called = returned = False
    for line in text.splitlines():
        if BLOCK.match(line) or LINE.match(line):
            called = returned = False
        elif line.startswith("call "):
            called, returned = True, False
        elif called and line.startswith("branch "):
            if returned and NEVER.match(line):
                line += " (throw)"
            returned = True
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run gcov with the arguments given, then mark what it wrote here; returns its exit status."""
    command = [os.environ.get("GCOV", "gcov"), *sys.argv[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    sys.stdout.write(done.stdout)
    for path in map(Path, re.findall(r"Creating '(.*\.gcov)'", done.stdout)):
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        path.write_text(marked(text), encoding="utf-8", errors="surrogateescape")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
