"""The smallest number that will do."""

from __future__ import annotations

from collections.abc import Callable


def smallest(meets: Callable[[int], bool], guess: int, most: int) -> int | None:
    """The smallest number from 1 to ``most`` that ``meets``; None where ``most`` does not.

    By doubling from ``guess`` and then by bisection, so it is assumed that with a number that meets
    every larger one does. What is returned meets, and one fewer was asked and does not, also where
    that assumption is wrong.
    """
    fails, good = 0, max(1, min(guess, most))
    while not meets(good):
        if good >= most:
            return None
        fails, good = good, min(most, 2 * good)
    while good - fails > 1:
        middle = (fails + good) // 2
        if meets(middle):
            good = middle
        else:
            fails = middle
    return good
