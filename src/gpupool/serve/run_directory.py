"""The private directory of one run: sockets, logs, temporary files. It goes when the run ends."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpupool.serve.failures import ServeError

_PREFIX = "gpupool-"
_LOCK = "lock"
# A Unix socket's path has at most 107 bytes, and vLLM puts sockets into a folder of ours: their
# names take 37 bytes, the folder's at most 6.
_MAX_PATH_BYTES = 64


@contextmanager
def run_directory() -> Iterator[Path]:
    """Makes a directory of mode 0700, removed on exit together with those of killed runs.

    It lies in `$XDG_RUNTIME_DIR`, else in the temporary directory. Raises ServeError when
    neither will do.
    """
    base = _base()
    _sweep(base)
    # Locked before it gets its real name, so that no other run's sweep can take it for a dead one.
    unborn = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=base))
    path = unborn
    lock_fd = os.open(unborn / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        path = unborn.rename(base / f"{_PREFIX}{secrets.token_hex(4)}")
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock_fd)


def _base() -> Path:
    candidates = [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir()]
    for candidate in filter(None, candidates):
        path = Path(candidate)
        longest = len(os.fsencode(path)) + 1 + len(_PREFIX) + 8
        if longest <= _MAX_PATH_BYTES and path.is_dir() and os.access(path, os.W_OK | os.X_OK):
            return path
    raise ServeError(
        "no place for the run directory; set XDG_RUNTIME_DIR or TMPDIR to a writable directory"
        f" whose path has at most {_MAX_PATH_BYTES - len(_PREFIX) - 9} bytes"
    )


def _sweep(base: Path) -> None:
    """Removes what runs left that were killed: nobody holds their locks any more."""
    for path in base.glob(f"{_PREFIX}*"):
        try:
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            lock_fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock_fd)
