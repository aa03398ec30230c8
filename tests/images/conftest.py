"""Images of a few pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from image_parts import CHUNK, written

from gpupool.images import format as image_format


@pytest.fixture(scope="module")
def small_chunks() -> Iterator[None]:
    """Files that are written and read meanwhile have digests of two pages each."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(image_format, "CHUNK_BYTES", CHUNK)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture
def parts_path(small_chunks: None, tmp_path: Path) -> Path:
    """A file of `image_parts.CONTENTS`."""
    return written(tmp_path / "image")
