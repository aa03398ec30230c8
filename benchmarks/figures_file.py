"""The file in which a program leaves what it measured, as it goes: for who is cut off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def keep(path: str | None, found: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
    """Write them, if a file is named, with ``complete`` in front: whether that is all.

    Whoever reads it finds all of this, or all that was there before. "-" is no file.
    """
    told = {"complete": complete, **found}
    if path not in (None, "-"):
        unfinished = Path(f"{path}.part")
        unfinished.write_text(json.dumps(told, indent=1) + "\n")
        unfinished.replace(str(path))
    return told
