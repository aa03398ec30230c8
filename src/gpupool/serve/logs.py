"""What an engine's log says: its last lines, and which of them is the reason."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from pathlib import Path

_TAIL_BYTES = 64 * 1024
_SAVED_BYTES = 1024 * 1024
# A log grows in the run directory, which may be in memory.
MAX_LOG_BYTES = 32 * 1024 * 1024

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# The last line of a Python traceback, whatever the logger has put before it.
_EXCEPTION = re.compile(r"(?:^|\s)((?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception|Exit)): (\S.*)$")
_ERROR_RECORD = re.compile(r"\b(?:ERROR|CRITICAL|FATAL)\b.*?\]\s+(\S.*)$|error: (\S.*)$")
# What vLLM's API server adds after the engine core has said why.
_ECHO = re.compile(r"Engine core initialization failed|See (root cause|stack trace) above")


def tail(path: Path, offset: int = 0) -> list[str]:
    """The last lines after byte `offset`, without colours; none when there is no log."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            # A log that was cut short is shorter than where this engine's part once began.
            start = offset if offset <= end else 0
            file.seek(max(start, end - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line for raw in text.splitlines() if (line := _COLOUR.sub("", raw).rstrip())]


def reason(lines: list[str]) -> str:
    """The line that says why a server ended: its last exception, error record, or line."""
    last_record = ""
    for line in reversed(lines):
        if _ECHO.search(line):
            continue
        if match := _EXCEPTION.search(line):
            return f"{match[1].rpartition('.')[2]}: {match[2]}"
        if not last_record and (match := _ERROR_RECORD.search(line)):
            last_record = match[1] or match[2]
    if last_record:
        return last_record
    return lines[-1].strip() if lines else "it wrote nothing"


def size_bytes(path: Path) -> int:
    """The log's present size, 0 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def bound(path: Path, limit_bytes: int = MAX_LOG_BYTES) -> None:
    """Empties a log that has passed `limit_bytes`; its writers append, so they go on."""
    if size_bytes(path) > limit_bytes:
        os.truncate(path, 0)


def save(path: Path, name: str) -> Path:
    """Copies a log's last part out of the run directory to where it stays; the copy's path.

    That is `$XDG_STATE_HOME/gpupool` (by default `~/.local/state/gpupool`), or the temporary
    directory where that cannot be written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    file_name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{stamp}-{os.getpid()}.log"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    directory = Path(state) / "gpupool"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _copy_end(path, directory / file_name)
    except OSError:
        directory = Path(tempfile.mkdtemp(prefix="gpupool-log-"))
        return _copy_end(path, directory / file_name)


def _copy_end(path: Path, copy: Path) -> Path:
    with path.open("rb") as source, copy.open("wb") as target:
        source.seek(max(0, size_bytes(path) - _SAVED_BYTES))
        shutil.copyfileobj(source, target)
    return copy
