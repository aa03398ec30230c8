"""What models cost, from what was measured as they ran: smoothed, and guessed before."""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.schedule.costs import Costs

_WEIGHT = 0.2
"""Of what was measured last, in the mean."""
_SWITCH_S = 0.5
_STEP_S = 0.02
_PREFILL_S_PER_TOKEN = 2e-4
_SHARE_MIN = 0.05
"""A swap of less than that of a model says nothing of what all of it takes."""
_KV_TOKENS_MAX = 1 << 62
"""More than anybody can tell of. An engine sees to its own KV: it lets nobody begin for whom it has
no room, so a policy has nobody to refuse."""


@dataclass
class _Means:
    switch_s: float = _SWITCH_S
    step_s: float = _STEP_S
    prefill_s_per_token: float = _PREFILL_S_PER_TOKEN
    known: frozenset[str] = frozenset()


class Measured:
    """The costs of each model, by its key."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self._means: dict[int, _Means] = {}
        self.costs: dict[int, Costs] = {}

    def add(self, key: int) -> None:
        """A model of which nothing is known."""
        self._means[key] = _Means()
        self._tell(key)

    def forget(self, key: int) -> None:
        """The model is gone."""
        del self._means[key], self.costs[key]

    def swapped(self, key: int, total_s: float, share: float) -> None:
        """A swap-in of that share of the model took so long."""
        if share >= _SHARE_MIN:
            self._mean(key, "switch_s", total_s / min(share, 1.0))

    def stepped(self, key: int, steps: int, took_s: float) -> None:
        """So many decode steps took so long together."""
        if steps > 0:
            self._mean(key, "step_s", took_s / steps)

    def prefilled(self, key: int, tokens: int, took_s: float) -> None:
        """Prefills of so many tokens took so long together."""
        if tokens > 0:
            self._mean(key, "prefill_s_per_token", took_s / tokens)

    def _mean(self, key: int, of: str, value: float) -> None:
        means = self._means[key]
        if of in means.known:
            value = (1 - _WEIGHT) * getattr(means, of) + _WEIGHT * value
        means.known |= {of}
        setattr(means, of, value)
        self._tell(key)

    def _tell(self, key: int) -> None:
        means = self._means[key]
        self.costs[key] = Costs(
            (0.0, means.prefill_s_per_token, 0.0),
            (means.step_s, 0.0, 0.0),
            means.switch_s,
            0.0,
            _KV_TOKENS_MAX,
        )
