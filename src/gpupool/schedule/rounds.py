"""Lengths of turns in a round, so that tokens made ahead last until the next turn.

The formulas are those of Aegaeon (SOSP 2025), for batches whose steps take t_k while tokens are due
every d: n_k = d / t_k is how many times as long a batch may pause as it ran.
"""

from __future__ import annotations

from collections.abc import Sequence

TURN_S_MAX = 4.0
_LOAD_MIN = 0.5


def turn_lengths(
    step_s: Sequence[float], tbt_s: Sequence[float], switches_s: float, turn_s_max: float
) -> tuple[tuple[float, ...], float]:
    """The turn of each batch, in seconds, and the attainment that the round can reach.

    With c = ``switches_s``, the switches of one round together, and m = ``turn_s_max``:
    alpha = max(c / (m * min n_k) + sum 1/n_k, 0.5), the turn of batch i is
    c / (n_i * (alpha - sum 1/n_k)), and attainment is min(1, 1/alpha). A round without switches, or
    with more steps than there is time for even so, has turns of ``turn_s_max``.

    >>> turn_lengths([0.025] * 3, [0.1] * 3, 3.0, 3.0)
    ((3.0, 3.0, 3.0), 1.0)
    """
    paces = [due_s / took_s for due_s, took_s in zip(tbt_s, step_s, strict=True)]
    load = sum(1 / pace for pace in paces)
    alpha = max(switches_s / (min(paces) * turn_s_max) + load, _LOAD_MIN)
    if alpha <= load or switches_s <= 0:
        return (turn_s_max,) * len(paces), min(1.0, 1 / alpha)
    turns_s = tuple(switches_s / (pace * (alpha - load)) for pace in paces)
    return turns_s, min(1.0, 1 / alpha)
