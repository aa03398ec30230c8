"""Traces that are made up: Poisson or burstier arrivals, even or uneven popularity."""

from __future__ import annotations

import random

from gpupool.errors import UsageError
from gpupool.simulate.trace import Arrival

_LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_INPUT_TOKENS = (4, 9, 15, 52, 218, 430, 619, 825, 1019, 1287, 1578, 1775, 2205, 4000)
_OUTPUT_TOKENS = (1, 23, 46, 110, 167, 222, 265, 309, 361, 443, 581, 735, 954, 1500)
"""Quantiles of ShareGPT chats as used in the traces of Aegaeon's artifact (SOSP 2025); the ends
are rounded. Input and output hardly depend on each other there, and are drawn apart here."""
_REQUESTS_MAX = 5_000_000


def synthetic_trace(
    *,
    models: int,
    rate_per_s: float,
    duration_s: float,
    cv: float = 1.0,
    zipf: float = 0.0,
    seed: int = 0,
) -> list[Arrival]:
    """Requests for ``models`` models, ``rate_per_s`` each on average. Raises UsageError.

    Gaps between a model's requests are Gamma distributed with the coefficient of variation ``cv``;
    1 makes them Poisson arrivals, more makes bursts. The k-th model has a share of the traffic in
    proportion to 1 / k^zipf. The same arguments make the same trace.
    """
    if models < 1 or rate_per_s <= 0 or duration_s <= 0 or cv <= 0 or zipf < 0:
        raise UsageError("models, rate, duration and cv must be above zero, and zipf not below")
    if models * rate_per_s * duration_s > _REQUESTS_MAX:
        raise UsageError(f"such a trace has more than {_REQUESTS_MAX} requests")
    rng = random.Random(seed)  # noqa: S311 - no secret
    weights = [1 / place**zipf for place in range(1, models + 1)]
    shape = 1 / cv**2
    found: list[Arrival] = []
    for place, weight in enumerate(weights):
        rate = rate_per_s * models * weight / sum(weights)
        scale_s = 1 / (rate * shape)
        # Begin long before, so that the first gap is no different from others that are cut.
        at_s = -rng.uniform(5, 15) * max(1.0, cv) / rate
        while (at_s := at_s + rng.gammavariate(shape, scale_s)) < duration_s:
            if at_s >= 0:
                lengths = _drawn(rng, _INPUT_TOKENS), _drawn(rng, _OUTPUT_TOKENS)
                found.append(Arrival(at_s, f"model_{place:04}", *lengths))
    return sorted(found, key=lambda arrival: arrival.at_s)


def _drawn(rng: random.Random, quantiles: tuple[int, ...]) -> int:
    level = rng.random()
    place = next(i for i in range(1, len(_LEVELS)) if level <= _LEVELS[i])
    low, high = quantiles[place - 1], quantiles[place]
    share = (level - _LEVELS[place - 1]) / (_LEVELS[place] - _LEVELS[place - 1])
    return max(1, round(low + share * (high - low)))
