"""Print requirements from pyproject.toml, one a line, for pip's -r.

python tools/requirements.py build          # what building the package needs
python tools/requirements.py run            # what the package itself needs
python tools/requirements.py serve test     # what extras need, and the extras they name
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def main() -> int:
    """Print them; returns the exit status."""
    described = tomllib.loads(PYPROJECT.read_text())
    found: dict[str, None] = {}
    for group in sys.argv[1:]:
        found |= dict.fromkeys(_group(described, group))
    print("\n".join(found))
    return 0


def _group(described: dict[str, Any], group: str) -> list[str]:
    if group == "build":
        return list(described["build-system"]["requires"])
    project = described["project"]
    if group == "run":
        return list(project["dependencies"])
    extras = project["optional-dependencies"]
    if group not in extras:
        sys.exit(f"{PYPROJECT} has no extra {group!r}: choose from {', '.join(extras)}")
    found = []
    for requirement in extras[group]:
        name, _, rest = requirement.partition("[")
        if name == project["name"]:
            for named in rest.rstrip("]").split(","):
                found += _group(described, named.strip())
        else:
            found.append(requirement)
    return found


if __name__ == "__main__":
    sys.exit(main())
