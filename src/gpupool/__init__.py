"""gpupool: many language models on few GPUs.

Importing this package touches no driver and needs neither torch nor vLLM.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from gpupool._core import SlabAllocator
from gpupool.model import Model
from gpupool.pool import Pool

__all__ = ["Model", "Pool", "SlabAllocator", "__version__"]

try:
    __version__ = version("gpupool")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"
