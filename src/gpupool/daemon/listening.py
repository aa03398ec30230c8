"""A Unix socket that only its user can reach."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpupool.errors import UsageError


class Listener:
    """A listening socket and the file it is reached by."""

    def __init__(self, path: Path) -> None:
        """Listen on ``path``, whose directory is made with mode 0700 or must have it already.

        A socket that nobody listens on is replaced. Raises UsageError, with nothing changed, or
        OSError.
        """
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.parent) as directory:
            _require_private(path.parent, os.fstat(directory))
            _remove_stale(path)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                _bind(self.socket, path)
                self._inode = path.lstat().st_ino
                path.chmod(0o600)
                self.socket.listen(1024)
                self.socket.setblocking(False)
            except BaseException:
                self.socket.close()
                raise

    def close(self) -> None:
        """Stop listening and remove the file, unless it is another daemon's by now."""
        with contextlib.suppress(OSError), _locked(self.path.parent):
            if self.path.lstat().st_ino == self._inode:
                self.path.unlink()
        self.socket.close()


def require_free(path: Path) -> None:
    """Say now what a Listener of ``path`` would be refused for; changes nothing.

    Raises UsageError or OSError.
    """
    if path.parent.exists():
        with _locked(path.parent) as directory:
            _require_private(path.parent, os.fstat(directory))
            _is_stale(path)


def remove_stale(directory: Path, names: str) -> None:
    """Remove sockets of such ``names``, a pattern, that nobody listens on. Raises OSError."""
    with _locked(directory):
        for path in directory.glob(names):
            with contextlib.suppress(UsageError, OSError):  # it is in use, or gone
                _remove_stale(path)


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Keep other daemons from starting or stopping in a directory, and its descriptor."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _require_private(directory: Path, info: os.stat_result) -> None:
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o077:
        raise UsageError(
            f"{directory} must belong to this user and have mode 0700, for whoever can reach the "
            "socket in it can reach the pool"
        )


def _bind(listener: socket.socket, path: Path) -> None:
    try:
        listener.bind(str(path))
    except OSError as error:
        if error.errno is None:  # "AF_UNIX path too long"
            raise UsageError(f"{path}: {error}; use a shorter path") from None
        raise


def _remove_stale(path: Path) -> None:
    if _is_stale(path):
        path.unlink()


def _is_stale(path: Path) -> bool:
    """Whether there is a socket that nobody listens on; raises UsageError for whatever else is."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(info.st_mode):
        raise UsageError(f"{path} exists and is no socket: name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                return True
            if error.errno != errno.EAGAIN:  # that is a daemon with much to do
                raise UsageError(f"{path} exists and is no socket of a daemon") from None
    raise UsageError(f"a daemon is listening on {path} already: stop it or name another path")
