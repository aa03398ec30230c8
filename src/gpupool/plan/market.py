"""What a plan is made for: a TOML file of goals and pools, read into frozen structs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from gpupool.errors import UsageError
from gpupool.schedule.autoscaling import Scaling
from gpupool.simulate.checkpoints import CHECKPOINTS, Checkpoint
from gpupool.simulate.profile_file import NOTHING_MEASURED, Profiles
from gpupool.simulate.profiles import Fit, known_fit
from gpupool.simulate.synthetic import synthetic_trace
from gpupool.simulate.toml_file import Above, Name, explained, read_toml
from gpupool.simulate.trace import Arrival, read_trace

_Seconds = Annotated[float, Meta(ge=0, le=1e6)]
_REQUESTS_MAX = 5_000_000


class Goals(Struct, frozen=True, forbid_unknown_fields=True):
    """When tokens are due, and what share of them has to be in time."""

    ttft_s: Above = 10.0
    tbt_s: Above = 0.1
    attainment: Annotated[float, Meta(gt=0, le=1)] = 0.9


class Traffic(Struct, frozen=True, forbid_unknown_fields=True):
    """How requests are made up for models with a rate."""

    duration_s: Above = 600.0
    cv: Annotated[float, Meta(gt=0, le=100)] = 1.0
    """Coefficient of variation of the gaps; 1: Poisson arrivals, more: bursts."""
    seed: int = 0


class Autoscaling(Struct, frozen=True, forbid_unknown_fields=True):
    """See ``schedule.autoscaling.Scaling``."""

    start_s: _Seconds = 30.0
    idle_s: _Seconds = 60.0
    requests_max: Annotated[int, Meta(ge=1, le=100_000)] = 32

    @property
    def scaling(self) -> Scaling:
        """As the policy takes it."""
        return Scaling(self.start_s, self.idle_s, self.requests_max)


class Model(Struct, frozen=True, forbid_unknown_fields=True):
    """One model, or ``count`` that are alike: a checkpoint, or sizes."""

    name: Name
    count: Annotated[int, Meta(ge=1, le=100_000)] = 1
    rate: Above | None = None
    """Requests/s of each."""
    checkpoint: str | None = None
    weights_gb: Above | None = None
    kv_kb_per_token: Above | None = None
    context_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] = 8192
    times_of: str | None = None
    """Whose measured times are scaled; by default those of the checkpoint, or qwen2_5_7b."""

    @property
    def names(self) -> list[str]:
        """Of the single models."""
        if self.count == 1:
            return [self.name]
        return [f"{self.name}-{place}" for place in range(1, self.count + 1)]


class Pool(Struct, frozen=True, forbid_unknown_fields=True):
    """Devices of one kind, and the models that are for them."""

    name: Name
    models: Annotated[list[Model], Meta(min_length=1)]
    gpu: str = "H100"
    gpu_gb: Above = 80.0
    link_gbps: Above = 16.0
    gpus_per_device: Annotated[int, Meta(ge=1, le=64)] = 1
    """So many GPUs run each model together, and are one device of the plan."""
    parallel_efficiency: Annotated[float, Meta(gt=0, le=1)] = 0.8
    trace: str | None = None
    """A CSV file of requests for the models by name, instead of rates."""

    def checkpoint_of(self, model: Model, measured: Profiles = NOTHING_MEASURED) -> Checkpoint:
        """What a model of this pool is, under a name of its own. Raises UsageError."""
        name = f"{self.name}/{model.name}"
        sizes = (model.weights_gb, model.kv_kb_per_token)
        if model.checkpoint is not None and sizes == (None, None):
            known = self._known(model.checkpoint, measured)
            switch = None if known.switch is None else known.switch.over(self.gpus_per_device)
            return replace(known, name=name, switch=switch)
        if model.checkpoint is not None or model.weights_gb is None:
            raise UsageError(f"{name} needs either checkpoint, or weights_gb and kv_kb_per_token")
        if model.kv_kb_per_token is None:
            raise UsageError(f"{name} needs kv_kb_per_token beside weights_gb")
        kv_bytes = max(1, round(model.kv_kb_per_token * 1e3))
        return Checkpoint(name, model.weights_gb * 1e9, kv_bytes, model.context_tokens)

    def fit_of(self, model: Model, measured: Profiles = NOTHING_MEASURED) -> Fit:
        """Times of a model on a device of this pool: measured ones, scaled. Raises UsageError.

        In proportion to the weights, what each token of context adds to a step in proportion to its
        KV, and over several GPUs divided by their number times ``parallel_efficiency``.
        """
        source = self._known(model.times_of or model.checkpoint or "qwen2_5_7b", measured)
        fit = known_fit(source.name, self.gpu, measured.fits)
        checkpoint = self.checkpoint_of(model, measured)
        apart = self.gpus_per_device * self.parallel_efficiency if self.gpus_per_device > 1 else 1.0
        weights = checkpoint.weights_bytes / source.weights_bytes / apart
        kv = checkpoint.kv_bytes_per_token / source.kv_bytes_per_token / apart
        prefill, step = fit.prefill_s, fit.step_s
        return Fit(
            (prefill[0] * weights, prefill[1] * weights, prefill[2] * weights),
            (step[0] * weights, step[1] * kv, step[2] * weights),
        )

    def _known(self, name: str, measured: Profiles) -> Checkpoint:
        known = CHECKPOINTS | measured.on(self.gpu)
        if name not in known:
            raise UsageError(f"there is no checkpoint {name}; there are {', '.join(known)}")
        return known[name]


class Market(Struct, frozen=True, forbid_unknown_fields=True):
    """All of the file."""

    pools: Annotated[list[Pool], Meta(min_length=1)]
    goals: Goals = Goals()
    traffic: Traffic = Traffic()
    autoscaling: Autoscaling = Autoscaling()
    profiles: str | None = None
    """Measured times, a CSV file as for ``gpupool simulate``."""


def load_market(path: Path) -> Market:
    """Read and check a file; files that it names are taken from its folder.

    Raises UsageError, with one sentence, and OSError.
    """
    market = read_toml(path, Market)
    folder = path.parent
    names = [pool.name for pool in market.pools]
    if len(set(names)) < len(names):
        raise UsageError(f"{path}: two pools have one name")
    pools = []
    for pool in market.pools:
        _check(path, pool)
        trace = None if pool.trace is None else str(folder / pool.trace)
        pools.append(msgspec.structs.replace(pool, trace=trace))
    profiles = None if market.profiles is None else str(folder / market.profiles)
    return msgspec.structs.replace(market, pools=pools, profiles=profiles)


def changed(market: Market, goals: Mapping[str, float | None], duration_s: float | None) -> Market:
    """The same with other goals and another duration; None changes nothing. Raises UsageError."""
    given = {name: value for name, value in goals.items() if value is not None}
    duration = {} if duration_s is None else {"duration_s": duration_s}
    try:
        return msgspec.structs.replace(
            market,
            goals=msgspec.convert(msgspec.structs.asdict(market.goals) | given, Goals),
            traffic=msgspec.convert(msgspec.structs.asdict(market.traffic) | duration, Traffic),
        )
    except msgspec.ValidationError as error:
        raise UsageError(explained(error)) from None


def trace_of(pool: Pool, traffic: Traffic) -> list[Arrival]:
    """The requests of a pool, in order of arrival. Raises UsageError and OSError."""
    names = [name for model in pool.models for name in model.names]
    if pool.trace is not None:
        trace = read_trace(Path(pool.trace))
        if unknown := {arrival.model for arrival in trace} - set(names):
            raise UsageError(f"{pool.trace}: {min(unknown)} is no model of the pool {pool.name}")
        return trace
    found: list[Arrival] = []
    rates = [model.rate or 0.0 for model in pool.models for _ in model.names]
    if sum(rates) * traffic.duration_s > _REQUESTS_MAX:
        raise UsageError(f"the pool {pool.name} would have more than {_REQUESTS_MAX} requests")
    for place, (name, rate) in enumerate(zip(names, rates, strict=True)):
        made = synthetic_trace(
            models=1,
            rate_per_s=rate,
            duration_s=traffic.duration_s,
            cv=traffic.cv,
            seed=traffic.seed * 1_000_003 + place,
        )
        found += [arrival._replace(model=name) for arrival in made]
    if not found:
        raise UsageError(
            f"no request comes to the pool {pool.name} in {traffic.duration_s:g} s;"
            " give a longer duration_s"
        )
    return sorted(found, key=lambda arrival: arrival.at_s)


def _check(path: Path, pool: Pool) -> None:
    counts = Counter(name for model in pool.models for name in model.names)
    name, count = counts.most_common(1)[0]
    if count > 1:
        raise UsageError(f"{path}: two models of the pool {pool.name} are named {name}")
    for model in pool.models:
        if (model.rate is None) == (pool.trace is None):
            raise UsageError(
                f"{path}: {pool.name}/{model.name} needs a rate, or its pool a trace, and not both"
            )
