"""Without a GPU and without the interpreter, nothing pretends to have moved anything."""

from __future__ import annotations

import os

import pytest

from gpupool.errors import UsageError
from gpupool.kernels.layout import BlockLayout

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the kernels would run")


def test_they_say_so() -> None:
    from gpupool.kernels.digest import digest_runs
    from gpupool.kernels.move import BlockMover

    memory = torch.zeros(64, dtype=torch.uint8)
    with pytest.raises(UsageError, match=r"need a GPU: use gpupool\.kernels\.reference"):
        BlockMover(BlockLayout.of([(0, 16, 16)], 4), memory)
    with pytest.raises(UsageError, match="need a GPU"):
        digest_runs([memory], "cpu")
