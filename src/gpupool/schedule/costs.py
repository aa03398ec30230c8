"""What running a model costs: linear models of its times, from measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Costs:
    """One model on one kind of device.

    The forms are those of Aegaeon (SOSP 2025): a prefill takes ``a + b * sum(n) + c * sum(n^2)``
    for prompts of n tokens, a decode step ``a + b * context + c * batch`` for all tokens of context
    and all requests of the batch.
    """

    prefill_s: tuple[float, float, float]
    step_s: tuple[float, float, float]
    switch_s: float
    """A switch that brings all of the weights in."""
    kv_s_per_token: float
    """To bring the KV of one token in."""
    kv_tokens_max: int
    """As much context as one device can hold beside the weights."""
    switch_fixed_s: float = 0.0
    """Of ``switch_s`` what every switch takes, also if all of the weights are there."""

    def load_s(self, there: float) -> float:
        """Seconds of a switch to the model, of whose weights such a share is on the device."""
        return self.switch_fixed_s + (1 - there) * (self.switch_s - self.switch_fixed_s)

    def prefill(self, lengths: Sequence[int]) -> float:
        """Seconds to prefill prompts of these lengths together."""
        fixed_s, per_token_s, per_square_s = self.prefill_s
        took_s = fixed_s + per_token_s * sum(lengths)
        if per_square_s:
            took_s += per_square_s * sum([length * length for length in lengths])
        return took_s

    def step(self, context_tokens: float, batch: int) -> float:
        """Seconds of one decode step."""
        fixed_s, per_token_s, per_request_s = self.step_s
        return fixed_s + per_token_s * context_tokens + per_request_s * batch
