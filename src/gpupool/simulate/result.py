"""What comes out of a simulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from gpupool.simulate.engine import Engine


@dataclass(frozen=True, slots=True)
class Result:
    """One policy on one trace. Times in seconds; shares from 0 to 1."""

    policy: str
    assumptions: str
    devices: int
    prefill_devices: int
    models: int
    requests: int
    finished: int
    dropped: int
    refused: int
    duration_s: float
    """From the start of the trace to the last token."""
    attainment_tokens: float
    """The paper's: of all tokens, those that came in time; a request given up has none."""
    attainment_time: float
    """The artifact's: the mean over requests of the share of time on schedule."""
    ttft_s_mean: float
    ttft_s_p50: float
    ttft_s_p90: float
    ttft_s_p99: float
    tbt_s_mean: float
    tbt_s_p50: float
    tbt_s_p99: float
    switches: int
    switching_s: float
    """All devices together, while they computed nothing."""
    utilisation: float
    """Of the devices' time until the last token, what they computed."""
    goodput_tokens_per_s: float
    """Tokens in time."""
    goodput_requests_per_s: float
    """Requests of which at least 90% of the tokens came in time."""
    ttft_s: tuple[float, ...] = field(default=(), repr=False)
    """Of every request that began, in order: what plots are made of."""


def result_of(
    engines: Sequence[Engine],
    *,
    policy: str,
    assumptions: str,
    devices: int,
    prefill_devices: int,
    models: int,
) -> Result:
    """The figures of engines that have run, one for each group of devices."""
    tallies = [tally for engine in engines for tally in engine.tallies.values()]
    served = [tally for tally in tallies if not tally.dropped]
    tokens = sum(tally.output_tokens for tally in tallies)
    on_time = sum(tally.on_time for tally in served)
    ttft_s = sorted(t.first_s - t.arrival_s for t in served if t.first_s is not None)
    good = sum(tally.on_time >= 0.9 * tally.output_tokens for tally in served)
    duration_s = max(engine.now_s for engine in engines)
    refused = sum(engine.refused for engine in engines)
    gaps_ms = sum((engine.gaps_ms for engine in engines), Counter[int]())
    return Result(
        policy=policy,
        assumptions=assumptions,
        devices=devices,
        prefill_devices=prefill_devices,
        models=models,
        requests=len(tallies),
        finished=sum(tally.tokens == tally.output_tokens for tally in served),
        dropped=sum(tally.dropped for tally in tallies) - refused,
        refused=refused,
        duration_s=duration_s,
        attainment_tokens=on_time / tokens,
        attainment_time=sum(tally.time_on_schedule for tally in tallies) / len(tallies),
        ttft_s_mean=sum(ttft_s) / len(ttft_s) if ttft_s else 0.0,
        ttft_s_p50=quantile(ttft_s, 0.5),
        ttft_s_p90=quantile(ttft_s, 0.9),
        ttft_s_p99=quantile(ttft_s, 0.99),
        tbt_s_mean=_mean_ms(gaps_ms) / 1000,
        tbt_s_p50=_quantile_ms(gaps_ms, 0.5) / 1000,
        tbt_s_p99=_quantile_ms(gaps_ms, 0.99) / 1000,
        switches=sum(engine.switches for engine in engines),
        switching_s=sum(engine.switching_s for engine in engines),
        utilisation=sum(engine.busy_s for engine in engines) / (devices * duration_s),
        goodput_tokens_per_s=on_time / duration_s,
        goodput_requests_per_s=good / duration_s,
        ttft_s=tuple(ttft_s),
    )


def quantile(ordered: Sequence[float], level: float) -> float:
    """The smallest that is not below so large a share of all; 0 where there are none."""
    return ordered[min(len(ordered) - 1, int(level * len(ordered)))] if ordered else 0.0


def _mean_ms(gaps_ms: Counter[int]) -> float:
    return sum(gap * count for gap, count in gaps_ms.items()) / max(1, gaps_ms.total())


def _quantile_ms(gaps_ms: Counter[int], level: float) -> float:
    ordered = sorted(gaps_ms.items())
    below = accumulate(count for _, count in ordered)
    wanted = level * gaps_ms.total()
    return next((gap for (gap, _), n in zip(ordered, below, strict=True) if n >= wanted), 0)
