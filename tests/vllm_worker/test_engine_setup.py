"""The pool of a benchmark's engines holds one of them and no two, whatever its pages are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.engine_setup import MIB, PAGE_MIB, Setup, set_up

GIVEN = {"graphs": None, "inductor": False, "runner": None}


def spanned(setup: Setup, *sizes_bytes: int) -> int:
    """What regions of those sizes take, each in pages of its own."""
    return sum(-(-size // setup.page_bytes) for size in sizes_bytes) * setup.page_bytes


@given(
    device=st.sampled_from(["host", "cuda"]),
    parameters=st.floats(2e6, 2e10),
    kv_mib=st.integers(128, 8192),
    cudagraph_mib=st.integers(0, 2048),
    buffers_bytes=st.integers(0, 32 * MIB),
)
def test_it_holds_one_and_no_two(
    device: str, parameters: float, kv_mib: int, cudagraph_mib: int, buffers_bytes: int
) -> None:
    graphs_mib = cudagraph_mib if device == "cuda" else 0
    given: dict[str, Any] = GIVEN | {"device": device, "parameters": parameters}
    given |= {"kv_mib": kv_mib, "cudagraph_mib": graphs_mib, "page_mib": None}
    setup = set_up(given)
    assert setup.page_bytes == PAGE_MIB[device] * MIB
    buffers_bytes = min(buffers_bytes, setup.page_bytes)
    regions = (setup.weights_bytes, kv_mib * MIB, graphs_mib * MIB, buffers_bytes)
    setup.check_holds_one([spanned(setup, *regions)] * 3)


def test_too_few_pages_for_one_and_no_two_are_refused() -> None:
    given = GIVEN | {"device": "cuda", "parameters": 2e6, "cudagraph_mib": 0, "page_mib": None}
    setup = set_up(given | {"kv_mib": 16})
    with pytest.raises(RuntimeError, match="take other --parameters or --kv-mib"):
        setup.check_holds_one([spanned(setup, setup.weights_bytes, 16 * MIB)])
