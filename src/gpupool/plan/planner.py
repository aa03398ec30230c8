"""How many devices each strategy needs for a market, by simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, floor
from pathlib import Path

from gpupool.plan.assumptions import assumptions_of
from gpupool.plan.market import Goals, Market, Pool, trace_of
from gpupool.plan.search import smallest
from gpupool.schedule.autoscaling import Scaling
from gpupool.simulate.checkpoints import Checkpoint
from gpupool.simulate.profile_file import NOTHING_MEASURED, Profiles, read_profiles
from gpupool.simulate.profiles import Fit
from gpupool.simulate.result import Result, quantile
from gpupool.simulate.simulation import Hardware, simulate
from gpupool.simulate.trace import Arrival

STRATEGIES = ("dedicated", "autoscaling", "fcfs", "aegaeon", "deadlines")
Progress = Callable[[str, str, int], None]
"""Told the pool, the strategy and the number of devices before each simulation."""
_MOST = 4
"""The search ends at so many times the devices that one for each model takes."""
_DEDICATED_MOST = 64
"""Devices that one model is given at most."""
_PREFILL_SHARE = 3 / 8
"""Of the devices under aegaeon so many prefill only, 6 of 16 in the paper; or none, if better."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one strategy needs for one pool. Times in seconds; shares from 0 to 1."""

    strategy: str
    devices: int | None
    """The smallest number that meets the goal; None: the most that was tried does not."""
    gpus: int | None
    enough: int
    """``devices``; where there are none, the smallest number that does as well as the most tried,
    which is what all figures here are of."""
    prefill_devices: int
    """Of them so many prefill only."""
    attainment: float
    """Of all tokens those in time."""
    ttft_s_p50: float
    ttft_s_p99: float
    switches: int
    utilisation: float
    tried: tuple[tuple[int, float], ...]
    """Every number of devices that was simulated, and the attainment there."""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One pool."""

    pool: str
    gpu: str
    gpus_per_device: int
    models: int
    requests: int
    weights_bytes: float
    """Of all its models: what the hosts hold where models share devices."""
    needs: tuple[Need, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All pools."""

    goals: Goals
    pools: tuple[PoolPlan, ...]
    gpus: dict[str, int | None]
    """By strategy, of all pools; None where one of them misses the goal."""
    assumptions: tuple[str, ...]


class PoolPlanner:
    """Plans one pool: its trace is made once, and every number of devices serves the same."""

    def __init__(
        self,
        pool: Pool,
        market: Market,
        measured: Profiles = NOTHING_MEASURED,
        progress: Progress | None = None,
    ) -> None:
        self.trace = trace_of(pool, market.traffic)
        self.models = {name: model for model in pool.models for name in model.names}
        self._pool = pool
        self._goals = market.goals
        self._scaling: Scaling = market.autoscaling.scaling
        self._progress = progress
        self._checkpoints: dict[str, Checkpoint] = {}
        self._fits: dict[tuple[str, str], Fit] = {}
        for model in pool.models:
            checkpoint = pool.checkpoint_of(model, measured)
            self._fits[checkpoint.name, pool.gpu] = pool.fit_of(model, measured)
            self._checkpoints |= dict.fromkeys(model.names, checkpoint)

    def plan(self, strategies: Sequence[str]) -> PoolPlan:
        """What each strategy needs. Raises UsageError."""
        return PoolPlan(
            pool=self._pool.name,
            gpu=self._pool.gpu,
            gpus_per_device=self._pool.gpus_per_device,
            models=len(self.models),
            requests=len(self.trace),
            weights_bytes=sum(found.weights_bytes for found in self._checkpoints.values()),
            needs=tuple(
                self._dedicated() if strategy == "dedicated" else self._shared(strategy)
                for strategy in strategies
            ),
        )

    def simulated(self, strategy: str, devices: int) -> Result:
        """The whole trace under a strategy that shares so many devices. Raises UsageError.

        Of several ways to deal the devices out the one that has more tokens in time.
        """
        if self._progress is not None:
            self._progress(self._pool.name, strategy, devices)
        splits = {0}
        if strategy == "aegaeon":
            wanted = devices * _PREFILL_SHARE
            splits |= {count for count in (floor(wanted), ceil(wanted)) if count < devices}
        results = [self._run(self.trace, strategy, devices, split) for split in sorted(splits)]
        return max(results, key=lambda result: result.attainment_tokens)

    def _run(
        self, trace: Sequence[Arrival], policy: str, devices: int, prefill_devices: int = 0
    ) -> Result:
        pool = self._pool
        return simulate(
            trace,
            policy,
            Hardware(
                devices=devices,
                prefill_devices=prefill_devices,
                gpu=pool.gpu,
                device_bytes=pool.gpu_gb * pool.gpus_per_device * 1e9,
                link_bytes_per_s=pool.link_gbps * pool.gpus_per_device * 1e9,
            ),
            fits=self._fits,
            checkpoints=self._checkpoints,
            scaling=self._scaling,
            ttft_s=self._goals.ttft_s,
            tbt_s=self._goals.tbt_s,
        )

    def _search(
        self, run: Callable[[int], Result], guess: int, most: int
    ) -> tuple[int | None, dict[int, Result]]:
        found: dict[int, Result] = {}

        def reaches(goal: float, devices: int) -> bool:
            if devices not in found:
                found[devices] = run(devices)
            return found[devices].attainment_tokens >= goal

        devices = smallest(partial(reaches, self._goals.attainment), guess, most)
        if devices is None:
            smallest(partial(reaches, found[most].attainment_tokens), guess, most)
        return devices, found

    def _shared(self, strategy: str) -> Need:
        models = len(self.models)
        devices, found = self._search(partial(self.simulated, strategy), models, _MOST * models)
        enough = devices or _as_good_as_most(found)
        result = found[enough]
        return Need(
            strategy=strategy,
            devices=devices,
            gpus=None if devices is None else devices * self._pool.gpus_per_device,
            enough=enough,
            prefill_devices=result.prefill_devices,
            attainment=result.attainment_tokens,
            ttft_s_p50=result.ttft_s_p50,
            ttft_s_p99=result.ttft_s_p99,
            switches=result.switches,
            utilisation=result.utilisation,
            tried=tuple((count, found[count].attainment_tokens) for count in sorted(found)),
        )

    def _dedicated(self) -> Need:
        """Each model alone, on one device, or on as many as it needs to meet the goal."""
        parts: dict[str, list[Arrival]] = {name: [] for name in self.models}
        for arrival in self.trace:
            parts[arrival.model].append(arrival)
        total, met = 0, True
        results: list[tuple[int, int, Result]] = []
        for name, trace in parts.items():
            if not trace:
                total += 1
                continue
            if self._progress is not None:
                self._progress(self._pool.name, f"dedicated, {name}", 1)
            devices, found = self._search(partial(self._run, trace, "fcfs"), 1, _DEDICATED_MOST)
            met = met and devices is not None
            count = devices or _as_good_as_most(found)
            total += count
            tokens = sum(arrival.output_tokens for arrival in trace)
            results.append((count, tokens, found[count]))
        tokens = sum(weight for _, weight, _ in results)
        on_time = sum(weight * result.attainment_tokens for _, weight, result in results)
        ttft_s = sorted(at_s for _, _, result in results for at_s in result.ttft_s)
        duration_s = max(result.duration_s for _, _, result in results)
        busy_s = sum(n * r.utilisation * r.duration_s for n, _, r in results)
        return Need(
            strategy="dedicated",
            devices=total if met else None,
            gpus=total * self._pool.gpus_per_device if met else None,
            enough=total,
            prefill_devices=0,
            attainment=on_time / tokens,
            ttft_s_p50=quantile(ttft_s, 0.5),
            ttft_s_p99=quantile(ttft_s, 0.99),
            switches=0,
            utilisation=busy_s / (total * duration_s),
            tried=((total, on_time / tokens),),
        )


def _as_good_as_most(found: dict[int, Result]) -> int:
    best = found[max(found)].attainment_tokens
    return min(count for count, result in found.items() if result.attainment_tokens >= best)


def plan(
    market: Market, strategies: Sequence[str] = STRATEGIES, progress: Progress | None = None
) -> Plan:
    """How many devices every strategy needs, pool by pool. Raises UsageError and OSError.

    The same arguments give the same plan.
    """
    path = market.profiles
    measured = NOTHING_MEASURED if path is None else read_profiles(Path(path))
    pools = tuple(
        PoolPlanner(pool, market, measured, progress).plan(strategies) for pool in market.pools
    )
    gpus: dict[str, int | None] = {}
    for place, strategy in enumerate(strategies):
        counts = [pool.needs[place].gpus for pool in pools]
        known = [count for count in counts if count is not None]
        gpus[strategy] = sum(known) if len(known) == len(counts) else None
    return Plan(market.goals, pools, gpus, assumptions_of(market))
