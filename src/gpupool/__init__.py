"""gpupool: many language models on few GPUs.

Importing this package touches no driver and needs neither torch nor vLLM.

A ``Pool`` holds models. ``digest`` tells whether bytes on the host are those that were there, as
of a page or a host image, and ``copy_with_digest`` makes a copy that can be told so. They find
accidents, not forgeries; a digest is the sum of those of its parts, modulo 2**64, each of which is
told the number of its first word of 8 bytes:

>>> import gpupool
>>> page = bytes(range(256)) * 16
>>> before = gpupool.digest(page)
>>> halves = gpupool.digest(page[:2048]), gpupool.digest(page[2048:], first_word=256)
>>> sum(halves) % 2**64 == before
True
>>> copy = bytearray(len(page))
>>> gpupool.copy_with_digest(copy, page) == before
True
>>> copy[1000] ^= 1
>>> gpupool.digest(copy) == before
False
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from gpupool._core import SlabAllocator, copy_with_digest, digest
from gpupool.model import Model
from gpupool.pool import Pool

__all__ = ["Model", "Pool", "SlabAllocator", "__version__", "copy_with_digest", "digest"]

try:
    __version__ = version("gpupool")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"
