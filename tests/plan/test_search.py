"""The search for the smallest number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpupool.plan.search import smallest

numbers = st.integers(1, 400)


@given(numbers, numbers, numbers)
def test_it_finds_where_it_begins(first: int, guess: int, most: int) -> None:
    """More than the smallest do as well, so nobody needs more for having been given more."""
    found = smallest(lambda n: n >= first, guess, most)
    assert found == (first if first <= most else None)


@given(st.sets(st.integers(1, 60)), st.integers(1, 60), st.integers(1, 60))
def test_one_fewer_misses_whatever_the_order(meets: set[int], guess: int, most: int) -> None:
    asked: list[int] = []

    def ask(number: int) -> bool:
        asked.append(number)
        return number in meets

    found = smallest(ask, guess, most)
    if found is None:
        assert most in asked and most not in meets
    else:
        assert found in meets and (found == 1 or found - 1 not in meets)
        assert found == 1 or found - 1 in asked
    assert len(asked) == len(set(asked)) and all(1 <= number <= most for number in asked)
