"""What is on each device, byte by byte: the honest account of weights and KV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpupool.schedule.work import Batch, Device
from gpupool.simulate.host_tier import HostTier


@dataclass(frozen=True, slots=True)
class Sizes:
    """What one model needs."""

    weights_bytes: float
    kv_bytes_per_token: float
    """Of device memory, with what fragmentation wastes."""
    kv_s_per_token: float
    """To bring the KV of one token in."""


@dataclass(slots=True)
class _Held:
    """What one device has: bytes of weights by model, least recently used first, and KV."""

    weights: dict[int, float] = field(default_factory=dict)
    kv_tokens: dict[int, int] = field(default_factory=dict)
    batches: dict[int, Batch] = field(default_factory=dict)


class ResidentLoader:
    """Weights and KV stay until their room is needed; a switch costs only what is missing.

    While a turn lasts, the link fetches the weights of the models that the policy named, in
    that order, into room that neither the running batch nor those before them need. KV that is
    pushed out goes the other way on a link that is full duplex, so a load takes the longer of both.
    Without ``warm`` nothing stays through a switch but what the policy names.
    """

    def __init__(
        self,
        sizes: Mapping[int, Sizes],
        *,
        capacity_bytes: float,
        link_bytes_per_s: float,
        switch_s_min: float,
        warm: bool = True,
        host: HostTier | None = None,
    ) -> None:
        self._sizes = sizes
        self._capacity_bytes = capacity_bytes
        self._link_bytes_per_s = link_bytes_per_s
        self._switch_s_min = switch_s_min
        self._warm = warm
        self._host = host
        self._held: dict[int, _Held] = {}
        self.bytes_max = 0.0
        """The most that was on one device at once."""

    def switch_s(self, device: Device, batch: Batch, keep: Sequence[int]) -> float:
        """See Loader."""
        held = self._held.setdefault(device.key, _Held())
        whole = self._sizes[batch.model].weights_bytes
        have = held.weights.pop(batch.model, 0.0)
        pushed_s = 0.0 if self._warm else self._clear(held, batch, keep)
        pushed_s += self._make_room(held, whole + self._kv_bytes(batch), batch, keep)
        held.weights[batch.model] = whole
        self._show(device, held)
        read_s = (whole - have) / self._link_bytes_per_s
        if self._host is not None and have < whole:
            read_s = max(read_s, self._host.read_s(batch.model, whole))
        return max(self._switch_s_min, read_s, pushed_s)

    def kv_s(self, device: Device, batch: Batch, *, new_turn: bool) -> float:
        """See Loader."""
        held = self._held.setdefault(device.key, _Held())
        missing = max(0, batch.context_tokens - held.kv_tokens.get(id(batch), 0))
        pushed_s = self._hold_kv(device, held, batch)
        return max(missing * self._sizes[batch.model].kv_s_per_token, pushed_s)

    def computed(self, device: Device, batch: Batch, busy_s: float, then: Sequence[int]) -> None:
        """See Loader."""
        held = self._held[device.key]
        self._hold_kv(device, held, batch)
        left_bytes = busy_s * self._link_bytes_per_s
        for place, model in enumerate(then):
            have = held.weights.get(model, 0.0)
            wanted = min(self._sizes[model].weights_bytes - have, left_bytes)
            if wanted <= 0:
                continue
            if self._host is not None:
                read_s = self._host.read_s(model, self._sizes[model].weights_bytes)
                left_bytes -= read_s * self._link_bytes_per_s
                wanted = min(wanted, left_bytes)
                if wanted <= 0:
                    break
            keep = (batch.model, *then[: place + 1])
            got = min(wanted, self._room(held, wanted, batch, keep))
            held.weights[model] = have + got
            left_bytes -= got
            if got < wanted or left_bytes <= 0:
                break
        self._show(device, held)

    def left(self, device: Device, batch: Batch) -> None:
        """See Loader."""
        held = self._held.get(device.key)
        if held is not None:
            held.kv_tokens.pop(id(batch), None)
            held.batches.pop(id(batch), None)

    def _clear(self, held: _Held, batch: Batch, keep: Sequence[int]) -> float:
        """Everything goes but what is kept; seconds that KV takes to leave."""
        held.weights = {model: have for model, have in held.weights.items() if model in keep}
        pushed_s = 0.0
        for key in [key for key in held.kv_tokens if key != id(batch)]:
            pushed_s += held.kv_tokens.pop(key) * (
                self._sizes[held.batches.pop(key).model].kv_s_per_token
            )
        return pushed_s

    def _hold_kv(self, device: Device, held: _Held, batch: Batch) -> float:
        """The running batch's KV is there; seconds that pushing others out takes."""
        held.kv_tokens.pop(id(batch), None)
        own = self._sizes[batch.model].weights_bytes
        needed = own + self._kv_bytes(batch)
        weights = held.weights.pop(batch.model, own)
        pushed_s = self._make_room(held, needed, batch, tuple(held.weights))
        held.weights[batch.model] = weights
        if batch.requests:
            held.kv_tokens[id(batch)] = sum(r.context_tokens for r in batch.requests if r.prefilled)
            held.batches[id(batch)] = batch
        self._show(device, held)
        return pushed_s

    def _kv_bytes(self, batch: Batch) -> float:
        tokens = sum(r.context_tokens for r in batch.requests if r.prefilled)
        return tokens * self._sizes[batch.model].kv_bytes_per_token

    def _used(self, held: _Held) -> float:
        kv = sum(
            tokens * self._sizes[held.batches[key].model].kv_bytes_per_token
            for key, tokens in held.kv_tokens.items()
        )
        return sum(held.weights.values()) + kv

    def _room(self, held: _Held, wanted: float, batch: Batch, keep: Sequence[int]) -> float:
        """As much room as can be made for a fetch without touching what is kept, nor any KV."""
        room = self._capacity_bytes - self._used(held)
        for model in [m for m in held.weights if m not in keep]:
            if room >= wanted:
                break
            gone = min(held.weights[model], wanted - room)
            held.weights[model] -= gone
            room += gone
        return max(0.0, room)

    def _make_room(self, held: _Held, needed: float, batch: Batch, keep: Sequence[int]) -> float:
        """Push out until ``needed`` bytes fit beside the rest; seconds that KV takes to leave."""
        over = (
            self._used(held)
            - held.kv_tokens.get(id(batch), 0) * (self._sizes[batch.model].kv_bytes_per_token)
            + needed
            - self._capacity_bytes
        )
        pushed_s = 0.0
        kept = {model: place for place, model in enumerate(keep)}
        first_to_go = sorted(held.weights, key=lambda m: -kept.get(m, len(kept)))
        for model in first_to_go:
            if over <= 0:
                break
            gone = min(held.weights[model], over)
            held.weights[model] -= gone
            over -= gone
        for key, tokens in sorted(
            held.kv_tokens.items(),
            key=lambda kv: -kept.get(held.batches[kv[0]].model, len(kept)),
        ):
            if over <= 0:
                break
            if key == id(batch):
                continue
            sizes = self._sizes[held.batches[key].model]
            gone_tokens = min(tokens, int(over / sizes.kv_bytes_per_token) + 1)
            held.kv_tokens[key] = tokens - gone_tokens
            over -= gone_tokens * sizes.kv_bytes_per_token
            pushed_s += gone_tokens * sizes.kv_s_per_token
        return pushed_s

    def _show(self, device: Device, held: _Held) -> None:
        self.bytes_max = max(self.bytes_max, self._used(held))
        for model in [m for m, have in held.weights.items() if have <= 0]:
            del held.weights[model]
        device.resident = {
            model: have / self._sizes[model].weights_bytes for model, have in held.weights.items()
        }
