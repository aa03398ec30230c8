"""What comes out of a simulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil
from types import MappingProxyType

from gpupool.simulate.classes import ModelClass
from gpupool.simulate.engine import Engine
from gpupool.simulate.tally import Tally

_ROUNDING = 1e-9
"""0.07 of 100 are 7, and by floats a little more."""


@dataclass(frozen=True, slots=True)
class ClassResult:
    """The requests for one class of models, measured against its own goals."""

    name: str
    goal_ttft_s: float
    goal_tbt_s: float
    weight: float
    models: int
    requests: int
    attainment_tokens: float
    attainment_time: float
    ttft_s_p50: float
    ttft_s_p99: float


@dataclass(frozen=True, slots=True)
class FitResult:
    """How well the times of a model that was simulated fit what was measured of it."""

    model: str
    gpu: str
    points: int
    left_out: int
    error_median: float
    """Relative, of all prefills and steps that were compared."""
    error_worst: float
    """Of those that were used."""


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
    cut: int
    """Requests that were longer than their model takes, and served in part."""
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
    """Of all devices together, until the weights were there: KV that comes after is not in it."""
    utilisation: float
    """Of the devices' time until the last token, what they computed."""
    goodput_tokens_per_s: float
    """Tokens in time."""
    goodput_requests_per_s: float
    """Requests of which at least 90% of the tokens came in time."""
    classes: tuple[ClassResult, ...] = ()
    """Where classes were given, each of them."""
    fits: tuple[FitResult, ...] = ()
    """Of the measurements that were given, those that were used."""
    ttft_s: tuple[float, ...] = field(default=(), repr=False)
    """Of every request that began, in order: what plots are made of."""


def result_of(
    engines: Sequence[Engine],
    *,
    policy: str,
    assumptions: str,
    devices: int,
    prefill_devices: int,
    models: Sequence[str],
    cut: int = 0,
    classes: Mapping[str, ModelClass] = MappingProxyType({}),
    fits: Sequence[FitResult] = (),
) -> Result:
    """The figures of engines that have run, one for each group of devices.

    ``models`` has the model of each request, by its key, ``cut`` says how many of them were, and
    ``classes`` has the class of each model, if there are classes.
    """
    by_key = {key: tally for engine in engines for key, tally in engine.tallies.items()}
    tallies = list(by_key.values())
    served = [tally for tally in tallies if not tally.dropped]
    on_time = sum(tally.on_time for tally in served)
    ttft_s = _ttft_s(tallies)
    good = sum(tally.on_time >= 0.9 * tally.output_tokens for tally in served)
    duration_s = max(engine.now_s for engine in engines)
    gaps_ms = sum((engine.gaps_ms for engine in engines), Counter[int]())
    return Result(
        policy=policy,
        assumptions=assumptions,
        devices=devices,
        prefill_devices=prefill_devices,
        models=len(set(models)),
        requests=len(tallies),
        finished=sum(tally.tokens == tally.output_tokens for tally in served),
        dropped=sum(tally.dropped for tally in tallies),
        cut=cut,
        duration_s=duration_s,
        attainment_tokens=_attainment_tokens(tallies),
        attainment_time=_attainment_time(tallies),
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
        classes=_by_class(by_key, models, classes),
        fits=tuple(fits),
        ttft_s=tuple(ttft_s),
    )


def _by_class(
    tallies: Mapping[int, Tally], models: Sequence[str], classes: Mapping[str, ModelClass]
) -> tuple[ClassResult, ...]:
    keys: dict[ModelClass, list[int]] = {of: [] for of in classes.values()}
    for key, model in enumerate(models if classes else ()):
        keys[classes[model]].append(key)
    found: list[ClassResult] = []
    for of, own in keys.items():
        of_class = [tallies[key] for key in own]
        ttft_s = _ttft_s(of_class)
        found.append(
            ClassResult(
                name=of.name,
                goal_ttft_s=of.goals.ttft_s,
                goal_tbt_s=of.goals.tbt_s,
                weight=of.weight,
                models=len({models[key] for key in own}),
                requests=len(own),
                attainment_tokens=_attainment_tokens(of_class),
                attainment_time=_attainment_time(of_class),
                ttft_s_p50=quantile(ttft_s, 0.5),
                ttft_s_p99=quantile(ttft_s, 0.99),
            )
        )
    return tuple(found)


def _attainment_tokens(tallies: Sequence[Tally]) -> float:
    on_time = sum(tally.on_time for tally in tallies if not tally.dropped)
    return on_time / sum(tally.output_tokens for tally in tallies)


def _attainment_time(tallies: Sequence[Tally]) -> float:
    return sum(tally.time_on_schedule for tally in tallies) / len(tallies)


def _ttft_s(tallies: Sequence[Tally]) -> list[float]:
    """Of those that began and were not given up, in order."""
    return sorted(
        t.first_s - t.arrival_s for t in tallies if t.first_s is not None and not t.dropped
    )


def quantile(ordered: Sequence[float], level: float) -> float:
    """The smallest that at least so large a share of all is not above; 0 where there are none."""
    place = ceil(level * len(ordered) - _ROUNDING) - 1
    return ordered[max(0, place)] if ordered else 0.0


def _mean_ms(gaps_ms: Counter[int]) -> float:
    return sum(gap * count for gap, count in gaps_ms.items()) / max(1, gaps_ms.total())


def _quantile_ms(gaps_ms: Counter[int], level: float) -> float:
    ordered = sorted(gaps_ms.items())
    below = accumulate(count for _, count in ordered)
    wanted = level * gaps_ms.total()
    return next((gap for (gap, _), n in zip(ordered, below, strict=True) if n >= wanted), 0)
