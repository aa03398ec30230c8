"""The folder of images: one file for each key, and room for the next by removing the oldest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gpupool.cache_folder import cache_folder
from gpupool.errors import GpupoolError, ImageWriteError
from gpupool.images.file import UNFINISHED, ImageFile, lock

SUFFIX = ".image.safetensors"
_NAME_MAX = 80


def default_folder() -> Path:
    """Where images lie unless told otherwise: in the user's cache folder (XDG_CACHE_HOME)."""
    return cache_folder() / "images"


@dataclass(frozen=True)
class Entry:
    """A file of the cache, as the folder tells of it."""

    path: Path
    size_bytes: int
    used_ns: int
    """When it was last written or loaded, on the clock of the file system."""


class ImageCache:
    """A private folder of images with a limit on its bytes.

    Many processes may use one: a file in use is locked, and none is ever there in part.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        """By default half of the file system's bytes. Touches nothing yet."""
        self.folder = folder
        self._limit_bytes = limit_bytes

    def path_of(self, name: str, key: dict[str, str]) -> Path:
        """Where the image of that key is, or would be; ``name`` is for people."""
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12)
        slug = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[-_NAME_MAX:] or "model"
        return self.folder / f"{slug}-{digest.hexdigest()}{SUFFIX}"

    def has(self, path: Path) -> bool:
        """Whether it is there, as far as this user can tell."""
        try:
            path.lstat()
        except OSError:
            return False
        return True

    def entries(self) -> list[Entry]:
        """What is there, that which was not used for the longest time first. Raises OSError."""
        found: list[Entry] = []
        for path in self._files(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    found.append(Entry(path, status.st_size, status.st_mtime_ns))
        return sorted(found, key=lambda entry: (entry.used_ns, entry.path))

    def mark_used(self, path: Path) -> None:
        """It is the one used last, from now on. Not being able to say so harms nothing."""
        with contextlib.suppress(OSError):
            os.utime(path)

    def make_room(
        self,
        size_bytes: int,
        allocate: Callable[[], None] = lambda: None,
        but: Path | None = None,
    ) -> list[Path]:
        """Remove files until so many bytes more are within the limit; which those were.

        Those not used for the longest time go first, none that is in use, and first of all what
        writers left that were killed. What others write just now counts. ``allocate`` gives the
        bytes to a file that is being written (UNFINISHED, locked), before anything is removed
        unless the disk has room only then. ``but`` is what they will replace. Makes the folder.
        Raises ImageWriteError if the limit is too low, the disk full, or the folder not this user's
        own: nothing that was whole is gone then, unless the disk took less than it had free.
        """
        try:
            self._make_folder()
            with self._alone(), ExitStack() as claims:
                limit_bytes = self._limit()
                scraps = sum(map(_remove_scrap, self._files(f"{UNFINISHED}*")))
                entries = [entry for entry in self.entries() if entry.path != but]
                over = scraps + sum(entry.size_bytes for entry in entries) + size_bytes
                over -= limit_bytes
                gone: list[Path] = []
                freed_bytes = 0
                for entry in entries if size_bytes <= limit_bytes else ():
                    if over <= freed_bytes:
                        break
                    if _claim(entry.path, claims):
                        freed_bytes += entry.size_bytes
                        gone.append(entry.path)
                if over <= freed_bytes:
                    allocated = self._allocated(allocate, size_bytes, freed_bytes)
                    for path in gone:
                        path.unlink()
                    if not allocated:
                        allocate()
                    return gone
        except OSError as error:
            reason = error.strerror or str(error)
            raise ImageWriteError(
                f"{self.folder} cannot take an image of {size_bytes} bytes: {reason}"
            ) from None
        raise ImageWriteError(
            f"{self.folder} may have {limit_bytes} bytes, and with an image of {size_bytes} "
            f"would have {over - freed_bytes} more: raise image_cache_bytes"
        )

    def _allocated(self, allocate: Callable[[], None], size_bytes: int, freed_bytes: int) -> bool:
        """False if that is to be tried once so much is freed. Raises OSError if it cannot help."""
        try:
            allocate()
        except OSError as error:
            system = os.statvfs(self.folder)
            free_bytes = system.f_bavail * system.f_frsize
            helps = free_bytes < size_bytes <= free_bytes + freed_bytes
            if error.errno != errno.ENOSPC or not helps:
                raise
            return False
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else makes room for the length of a ``with`` block."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def remove(self, path: Path) -> bool:
        """Take a file out, whoever reads it; False if it is not there. Raises OSError."""
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    def _limit(self) -> int:
        if self._limit_bytes is not None:
            return self._limit_bytes
        system = os.statvfs(self.folder)
        return system.f_blocks * system.f_frsize // 2

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.is_private():
            # Digests find accidents, not forgeries.
            raise ImageWriteError(
                f"{self.folder} can be written by others: make it this user's own, of mode 0700"
            )

    def is_private(self) -> bool:
        """Whether nobody else can put a file there; so is a folder that is not there."""
        try:
            status = self.folder.stat()
        except OSError:
            return True
        return status.st_uid == os.geteuid() and not status.st_mode & 0o022

    def _files(self, pattern: str) -> Iterator[Path]:
        return iter(sorted(self.folder.glob(pattern)))


def _claim(path: Path, claims: ExitStack) -> bool:
    """Lock a file that nobody has locked, until ``claims`` end; False if somebody has, or none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        claims.callback(os.close, fd)
        # Another may have been put in its place since it was opened.
        unused = lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return unused and os.fstat(fd).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _remove_scrap(path: Path) -> int:
    """Remove what no writer has locked any more; how many bytes it has else."""
    with ExitStack() as claims, contextlib.suppress(FileNotFoundError):
        size_bytes = path.stat().st_size
        if size_bytes == 0:  # about to ask for room, and not locked yet, or by no file system
            return 0
        if not _claim(path, claims):
            return size_bytes
        path.unlink()
    return 0


def verify(path: Path) -> str | None:
    """What is wrong with a file, or None: every byte that counts is read."""
    try:
        with ImageFile(path) as file:
            file.verify()
    except (GpupoolError, OSError) as error:
        return str(error)
    return None
