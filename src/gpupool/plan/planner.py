"""How many devices each strategy needs for a market, by simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpupool.plan.market import Goals, Market, Pool, trace_of
from gpupool.plan.search import smallest
from gpupool.schedule.autoscaling import Scaling
from gpupool.simulate.checkpoints import Checkpoint
from gpupool.simulate.profiles import Fit, fit_profiles
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
"""Of the devices under aegaeon so many prefill only: 6 of 16, as in the paper."""


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
        fits: dict[tuple[str, str], Fit],
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
            checkpoint = pool.checkpoint_of(model)
            self._fits[checkpoint.name, pool.gpu] = pool.fit_of(model, fits)
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
        """The whole trace under a strategy that shares so many devices. Raises UsageError."""
        if self._progress is not None:
            self._progress(self._pool.name, strategy, devices)
        return self._run(self.trace, strategy, devices)

    def _run(self, trace: Sequence[Arrival], policy: str, devices: int) -> Result:
        pool = self._pool
        split = max(1, round(devices * _PREFILL_SHARE)) if policy == "aegaeon" else 0
        return simulate(
            trace,
            policy,
            Hardware(
                devices=devices,
                prefill_devices=split if devices > 1 else 0,
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
    fits = {} if market.profiles is None else fit_profiles(Path(market.profiles))
    pools = tuple(
        PoolPlanner(pool, market, fits, progress).plan(strategies) for pool in market.pools
    )
    gpus: dict[str, int | None] = {}
    for place, strategy in enumerate(strategies):
        counts = [pool.needs[place].gpus for pool in pools]
        known = [count for count in counts if count is not None]
        gpus[strategy] = sum(known) if len(known) == len(counts) else None
    return Plan(market.goals, pools, gpus, assumptions_of(market))


def assumptions_of(market: Market) -> tuple[str, ...]:
    """What a plan takes to be so, a sentence each."""
    goals, scaling, traffic = market.goals, market.autoscaling, market.traffic
    found = [
        f"A number of devices meets the goal if {goals.attainment:.0%} of a pool's tokens come in"
        f" time: the first {goals.ttft_s:g} s after the request, each later one"
        f" {goals.tbt_s:g} s on.",
        "With a number of devices that meets it every larger one is taken to: the smallest is found"
        " by bisection, and one fewer was simulated and misses.",
        "dedicated: a device of its own for each model, more if it alone misses the goal.",
        f"autoscaling: a device is a model's from its first request until"
        f" {scaling.idle_s:g} s after its last; a start takes {scaling.start_s:g} s, the load"
        f" included; a model with {scaling.requests_max} requests on each device gets another, and"
        " waits where none is free.",
        "Nothing is loaded when the requests begin, under any strategy.",
        "fcfs: whole requests in order, engines stay alive, a switch takes weights / link.",
        "aegaeon: tokens, in rounds; 3 of 8 devices prefill only. deadlines: tokens, by deadline.",
        "Weights of models that share devices are in host memory, of which there is enough.",
        "90% of a device's memory is for weights and KV; what else is assumed is in"
        " docs/simulate.md, honest.",
    ]
    if any(pool.trace is None for pool in market.pools):
        found.append(
            f"Requests are made up: {traffic.duration_s:g} s at the rates given, gaps with a"
            f" coefficient of variation of {traffic.cv:g}, lengths of ShareGPT chats,"
            f" seed {traffic.seed}."
        )
    scaled = [m for pool in market.pools for m in pool.models if m.checkpoint is None or m.times_of]
    if scaled:
        found.append(
            "Times of models given by size are those measured of another checkpoint times the"
            " ratio of their weights (for context: of their KV)."
        )
    found += [
        f"Pool {pool.name}: {pool.gpus_per_device} GPUs are one device, with all their memory and"
        f" links, and times are those of one GPU divided by"
        f" {pool.gpus_per_device * pool.parallel_efficiency:g}."
        for pool in market.pools
        if pool.gpus_per_device > 1
    ]
    return tuple(found)
