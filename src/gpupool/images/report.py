"""What a folder of images has, for people and for machines."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from gpupool.errors import GpupoolError
from gpupool.images.cache import Entry, ImageCache
from gpupool.images.file import ImageFile


class Image(msgspec.Struct, frozen=True):
    """One file of the folder."""

    file: str
    size_bytes: int
    used_s: float
    """When it was last written or loaded, in seconds since 1970."""
    key: dict[str, str]
    """What it was made of; empty where the file does not tell."""
    problem: str | None = None
    """Why it is of no use, as far as its header tells."""


def images_in(cache: ImageCache) -> list[Image]:
    """All of them, the one used last first; of each only the header is read. Raises OSError."""
    return [_image(entry) for entry in reversed(cache.entries())]


def describe(images: list[Image]) -> str:
    """A line for each, and what they take together."""
    lines = [
        f"{image.file}  {image.size_bytes / 1e6:.1f} MB"
        f"  used {datetime.fromtimestamp(image.used_s, UTC):%Y-%m-%d %H:%M} UTC"
        f"  {image.problem or 'vLLM ' + image.key.get('vllm', '?')}"
        for image in images
    ]
    total = sum(image.size_bytes for image in images)
    return "\n".join([*lines, f"{len(images)} images, {total} bytes"])


def _image(entry: Entry) -> Image:
    key: dict[str, str] = {}
    problem: str | None = None
    try:
        with ImageFile(entry.path) as file:
            key = file.manifest.key
    except (GpupoolError, OSError) as error:
        problem = str(error)
    return Image(entry.path.name, entry.size_bytes, entry.used_ns / 1e9, key, problem)
