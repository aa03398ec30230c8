"""Where gpupool keeps what can be had again: images, and what was measured on a device."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """In this user's cache folder, which XDG_CACHE_HOME names, or ``~/.cache``."""
    given = os.environ.get("XDG_CACHE_HOME", "").strip()
    return Path(given or "~/.cache").expanduser() / "gpupool"
