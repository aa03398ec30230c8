"""Loads that cost what is missing: the honest account of weights and KV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpupool.schedule.work import Batch, Device
from gpupool.simulate.holding import Holding, Sizes
from gpupool.simulate.host_tier import HostTier


class ResidentLoader:
    """Weights and KV stay until their room is needed; a switch costs only what is missing.

    While a turn lasts, the link fetches the weights of the models that the policy named, in that
    order, into room that neither the running batch nor those before them need. KV that is pushed
    out goes the other way on a link that is full duplex, so a load takes the longer of both.
    Without ``warm`` nothing stays through a switch but what the policy names. Models whose switches
    were measured take the time that was, the others no less than ``switch_s_min``.
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
        self._holdings: dict[int, Holding] = {}
        self.bytes_max = 0.0
        """The most that was on one device at once."""

    def switch_s(self, device: Device, batch: Batch, keep: Sequence[int]) -> float:
        """See Loader."""
        holding = self._holding(device)
        whole = self._sizes[batch.model].weights_bytes
        missing = whole - holding.weights_bytes(batch.model)
        pushed_s = 0.0 if self._warm else holding.clear(batch, keep)
        pushed_s += holding.make_room(batch, missing, keep)
        holding.set_weights(batch.model, whole)
        self._note(holding)
        load_s = missing * self._slower(self._sizes[batch.model].load_s_per_byte)
        load_s /= self._link_bytes_per_s
        if self._host is not None and missing > 0:
            load_s = max(load_s, self._host.read(batch.model, whole))
        fixed_s = self._sizes[batch.model].switch_fixed_s
        if fixed_s is not None:
            return fixed_s + max(load_s, pushed_s)
        return max(self._switch_s_min, load_s, pushed_s)

    def kv_s(self, device: Device, batch: Batch, *, more_tokens: int, new_turn: bool) -> float:
        """See Loader."""
        holding = self._holding(device)
        sizes = self._sizes[batch.model]
        # Of a batch that has grown too large, what does not fit beside who runs is on the host.
        room = (self._capacity_bytes - sizes.weights_bytes) / sizes.kv_bytes_per_token
        wanted = min(_kv_tokens(batch), max(0, int(room) - more_tokens))
        missing = max(0, wanted - holding.kv_tokens(batch))
        own_s = max(0, holding.kv_tokens(batch) - wanted) * sizes.kv_s_per_token
        holding.set_kv(batch, min(wanted, holding.kv_tokens(batch)))
        more_bytes = (missing + more_tokens) * sizes.kv_bytes_per_token
        pushed_s = own_s + holding.make_room(batch, more_bytes, ())
        holding.set_kv(batch, wanted)
        holding.used_bytes += more_tokens * sizes.kv_bytes_per_token
        self._note(holding)
        holding.used_bytes -= more_tokens * sizes.kv_bytes_per_token
        return max(missing * sizes.kv_s_per_token, pushed_s)

    def computed(
        self, device: Device, batch: Batch, busy_s: float, made_tokens: int, then: Sequence[int]
    ) -> None:
        """See Loader."""
        holding = self._holding(device)
        made = holding.kv_tokens(batch) + made_tokens
        holding.set_kv(batch, min(_kv_tokens(batch), made))
        left_bytes = busy_s * self._link_bytes_per_s
        for place, model in enumerate(then):
            have = holding.weights_bytes(model)
            wanted = self._sizes[model].weights_bytes - have
            if wanted <= 0:
                continue
            if self._host is not None:
                left_s = left_bytes / self._link_bytes_per_s
                read_s = self._host.read(model, self._sizes[model].weights_bytes, left_s)
                left_bytes -= read_s * self._link_bytes_per_s
                if read_s >= left_s:
                    break
            if left_bytes <= 0:
                break
            slower = self._slower(self._sizes[model].fetch_s_per_byte)
            if wanted * slower > left_bytes:
                wanted = left_bytes / slower
            got = holding.spare(wanted, (batch.model, *then[: place + 1]))
            holding.set_weights(model, have + got)
            left_bytes -= got * slower
            if got < wanted:
                break
        self._note(holding)

    def left(self, device: Device, batch: Batch) -> None:
        """See Loader."""
        self._holding(device).set_kv(batch, 0)

    def _slower(self, s_per_byte: float | None) -> float:
        """How many times longer than over the link a byte takes."""
        return 1.0 if s_per_byte is None else s_per_byte * self._link_bytes_per_s

    def _holding(self, device: Device) -> Holding:
        holding = self._holdings.get(device.key)
        if holding is None:
            holding = self._holdings[device.key] = Holding(self._sizes, self._capacity_bytes)
            device.resident = holding.resident
        return holding

    def _note(self, holding: Holding) -> None:
        self.bytes_max = max(self.bytes_max, holding.used_bytes)


def _kv_tokens(batch: Batch) -> int:
    """Tokens of context that exist, whether here or on the host."""
    return sum(r.context_tokens for r in batch.requests if r.produced_tokens)
