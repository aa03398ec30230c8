"""A Unix socket that only its user can reach."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from gpupool.errors import UsageError


def listen(path: Path) -> socket.socket:
    """Listen on ``path``, whose directory is made with mode 0700 or must have it already.

    A socket that no daemon answers on is replaced. Raises UsageError or OSError.
    """
    directory = path.parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = directory.stat()
    if info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077:
        raise UsageError(
            f"{directory} must belong to this user and have mode 0700, for whoever can reach the "
            "socket in it can reach the pool"
        )
    if path.exists():
        _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(64)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno is None:  # "AF_UNIX path too long"
            raise UsageError(f"{path}: {error}; use a shorter path") from None
        raise
    return listener


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise UsageError(f"{path} exists and is no socket of a daemon") from None
            path.unlink(missing_ok=True)
            return
    raise UsageError(f"a daemon is listening on {path} already")
