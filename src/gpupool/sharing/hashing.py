"""What the pages of an image have in them, as a cryptographic hash: equal only if the bytes are."""

from __future__ import annotations

from typing import cast

from gpupool._core import Region
from gpupool.errors import UsageError

CONTENT_BYTES = 32


def contents_of(region: Region, page_bytes: int) -> list[bytes]:
    """The BLAKE3 hash of each whole page of a region's image.

    Raises UsageError where the package ``blake3`` is missing, or the region has no image.
    """
    try:
        import blake3
    except ImportError:
        raise UsageError(
            "models share pages by their BLAKE3 hashes: pip install 'gpupool[sharing]'"
        ) from None
    threads = blake3.blake3.AUTO
    with memoryview(cast("bytearray", region.image())) as image:
        starts = range(0, region.bytes - page_bytes + 1, page_bytes)
        return [
            blake3.blake3(image[start : start + page_bytes], max_threads=threads).digest()
            for start in starts
        ]
