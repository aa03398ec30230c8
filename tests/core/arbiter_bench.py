"""Arbiters over real page ledgers."""

from __future__ import annotations

from gpupool._core import PagePool, open_host_driver
from gpupool.arbiter import Arbiter

PAGE_BYTES = 2 << 20
BUDGET_PAGES = 5
TURN_S = 2.0


def arbiter_of(pages: int = BUDGET_PAGES, turn_s: float = TURN_S) -> Arbiter:
    return Arbiter(PagePool(open_host_driver(), pages * PAGE_BYTES, PAGE_BYTES), turn_s)


def joined(arbiter: Arbiter, name: str, pages: int, warmable: int = 0) -> int:
    key = arbiter.add(name, 0.0)
    arbiter.declare(key, pages, warmable=warmable)
    return key
