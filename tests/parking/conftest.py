from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_members import closed_at_the_end, pool_of

from gpupool import Pool


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the pool parks."""
    return tmp_path / "parked"


@pytest.fixture
def pool(folder: Path) -> Iterator[Pool]:
    """A pool with host memory for the images of fewer models than there will be."""
    with closed_at_the_end(pool_of(folder), folder) as pool:
        yield pool
