"""What one device holds: weights and KV, in bytes, with a running total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpupool.schedule.work import Batch


@dataclass(frozen=True, slots=True)
class Sizes:
    """What one model needs."""

    weights_bytes: float
    kv_bytes_per_token: float
    """Of device memory, with what fragmentation wastes."""
    kv_s_per_token: float
    """To bring the KV of one token in, or out."""
    switch_fixed_s: float | None = None
    """What every switch to it takes beside its load, where that was measured."""
    load_s_per_byte: float | None = None
    """Of its weights at a switch, where that was measured; None: the link's."""
    fetch_s_per_byte: float | None = None
    """The same while a batch runs."""


class Holding:
    """The memory of one device."""

    def __init__(self, sizes: Mapping[int, Sizes], capacity_bytes: float) -> None:
        self._sizes = sizes
        self._capacity_bytes = capacity_bytes
        self._weights: dict[int, float] = {}
        self._kv: dict[int, tuple[Batch, int]] = {}
        self.used_bytes = 0.0
        self.resident: dict[int, float] = {}
        """Of which models there is what share of the weights."""

    def weights_bytes(self, model: int) -> float:
        """What is here of a model's weights."""
        return self._weights.get(model, 0.0)

    def set_weights(self, model: int, held_bytes: float) -> None:
        """So much of a model's weights is here now."""
        self.used_bytes += held_bytes - self._weights.pop(model, 0.0)
        self.resident.pop(model, None)
        if held_bytes > 0:
            self._weights[model] = held_bytes
            self.resident[model] = held_bytes / self._sizes[model].weights_bytes

    def kv_tokens(self, batch: Batch) -> int:
        """What is here of a batch's KV."""
        found = self._kv.get(id(batch))
        return found[1] if found else 0

    def set_kv(self, batch: Batch, tokens: int) -> None:
        """So much of a batch's KV is here now, or has room kept for it."""
        before = self._kv.pop(id(batch), (batch, 0))[1]
        self.used_bytes += (tokens - before) * self._sizes[batch.model].kv_bytes_per_token
        if tokens > 0:
            self._kv[id(batch)] = batch, tokens

    def clear(self, batch: Batch, keep: Sequence[int]) -> float:
        """Everything goes but a batch and the weights kept; seconds that KV takes to leave."""
        for model in [m for m in self._weights if m not in keep and m != batch.model]:
            self.set_weights(model, 0.0)
        return sum(self._push(other, tokens) for other, tokens in self._others(batch))

    def spare(self, wanted_bytes: float, keep: Sequence[int]) -> float:
        """As much room, up to what is wanted, as there is or weights not kept can make."""
        room = self._capacity_bytes - self.used_bytes
        for model in [m for m in self._weights if m not in keep] if room < wanted_bytes else ():
            room += self._shrink(model, wanted_bytes - room)
            if room >= wanted_bytes:
                break
        return max(0.0, min(room, wanted_bytes))

    def make_room(self, batch: Batch, more_bytes: float, keep: Sequence[int]) -> float:
        """Weights leave, then KV, until so much more fits; seconds that KV takes to leave.

        What is kept leaves last, and of it the first named at the very last; nothing of the batch,
        or of its model, leaves.
        """
        over = self.used_bytes + more_bytes - self._capacity_bytes
        if over <= 0:
            return 0.0
        kept = {model: -place for place, model in enumerate(keep, start=1)}
        last = -len(keep) - 1
        for model in sorted(self._weights, key=lambda m: kept.get(m, last)):
            if over > 0 and model != batch.model:
                over -= self._shrink(model, over)
        pushed_s = 0.0
        for other, tokens in sorted(
            self._others(batch), key=lambda found: kept.get(found[0].model, last)
        ):
            if over <= 0:
                break
            token_bytes = self._sizes[other.model].kv_bytes_per_token
            gone = min(tokens, int(over / token_bytes) + 1)
            over -= gone * token_bytes
            pushed_s += self._push(other, gone)
        return pushed_s

    def _others(self, batch: Batch) -> list[tuple[Batch, int]]:
        return [found for key, found in self._kv.items() if key != id(batch)]

    def _shrink(self, model: int, wanted_bytes: float) -> float:
        have = self._weights[model]
        gone = min(have, wanted_bytes)
        if gone >= have:
            self.set_weights(model, 0.0)
        else:  # it keeps its place in the order of use
            self.used_bytes -= gone
            self._weights[model] = have - gone
            self.resident[model] = (have - gone) / self._sizes[model].weights_bytes
        return gone

    def _push(self, batch: Batch, tokens: int) -> float:
        self.set_kv(batch, self.kv_tokens(batch) - tokens)
        return tokens * self._sizes[batch.model].kv_s_per_token
