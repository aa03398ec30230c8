"""Pages that one found wrong: who has them, who is given them, and what is warm of them."""

from __future__ import annotations

import pytest
from arbiter_bench import PAGE_BYTES, TURN_S

from gpupool._core import PagePool, open_host_driver
from gpupool.arbiter import Arbiter
from gpupool.errors import UsageError

CONTENTS = {0: b"a" * 32, 1: b"b" * 32}


class Sharers:
    """Models of two pages, which are the same, and of one more."""

    def __init__(self, count: int) -> None:
        self.pool = PagePool(open_host_driver(), 12 * PAGE_BYTES, PAGE_BYTES)
        self.arbiter = Arbiter(self.pool, TURN_S)
        self.keys = [self.arbiter.add(name, 0.0) for name in "wxyz"[:count]]
        for key in self.keys:
            self.arbiter.declare(key, 3, warmable=3, contents=CONTENTS)

    def come(self, key: int) -> dict[int, int]:
        """Which pages of others it was given, by their places; it says what it has."""
        self.arbiter.request(key, 0.0)
        (granted,) = self.arbiter.decide(0.0).granted
        self.arbiter.has(key, granted.shared or dict(enumerate(granted.pages[:2])))
        return granted.shared

    def keep_warm(self, key: int, pages: int) -> None:
        self.arbiter.shrink(key, self.pool.owned(key)[pages:], leaving=True)
        self.arbiter.yielded(key, 0.0, pages)


def test_who_has_it_is_named_and_nobody_is_given_it() -> None:
    s = Sharers(4)
    one, other, finder, later = s.keys
    s.come(one)
    shared = s.come(other)
    assert s.come(finder) == shared
    assert s.arbiter.distrust(finder, [shared[1]]) == [one, other]
    assert s.arbiter.must_leave(one) and s.arbiter.must_leave(other)
    s.arbiter.has(other, {1: shared[1]})  # which crossed that
    s.arbiter.yielded(finder, 0.0)
    assert s.come(later) == {}


def test_what_was_wrong_elsewhere_leaves_the_pages_of_others_as_good_as_they_were() -> None:
    s = Sharers(3)
    one, finder, later = s.keys
    s.come(one)
    shared = s.come(finder)
    assert s.arbiter.distrust(finder, []) == []
    s.arbiter.yielded(finder, 0.0)
    assert s.come(finder) == s.come(later) == shared


def test_what_is_warm_of_it_is_asked_for_once_and_nothing_is_granted_before() -> None:
    s = Sharers(3)
    one, finder, _ = s.keys
    s.come(one)
    shared = s.come(finder)
    s.keep_warm(one, 3)
    assert s.arbiter.distrust(finder, [shared[0]]) == [one]
    assert not s.arbiter.must_leave(one)
    assert [(cool.key, cool.pages) for cool in s.arbiter.decide(0.0).cooled] == [(one, 3)]
    s.arbiter.request(one, 0.0)
    outcome = s.arbiter.decide(0.0)
    assert (outcome.cooled, outcome.granted) == ([], [])
    s.arbiter.shrink(one, s.pool.owned(one), leaving=True)
    s.arbiter.cooled(one, 0.0)
    (granted,) = s.arbiter.decide(0.0).granted
    assert granted.key == one and not granted.shared
    assert s.arbiter.decide(0.0).cooled == []


def test_a_page_that_comes_free_is_as_good_as_any() -> None:
    s = Sharers(2)
    one, finder = s.keys
    s.come(one)
    shared = s.come(finder)
    s.arbiter.distrust(finder, shared.values())
    s.arbiter.yielded(finder, 0.0)
    s.arbiter.yielded(one, 0.0)
    s.come(one)
    assert s.come(finder).keys() == shared.keys()
    assert s.arbiter.decide(0.0).cooled == []


def test_of_pages_that_a_model_does_not_hold_it_finds_nothing() -> None:
    s = Sharers(2)
    one, finder = s.keys
    s.come(one)
    with pytest.raises(UsageError, match="does not hold"):
        s.arbiter.distrust(finder, s.pool.owned(one)[:1])
    assert s.come(finder)
