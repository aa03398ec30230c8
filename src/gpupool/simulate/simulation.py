"""One simulation, from a trace and a description of the hardware to figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from types import MappingProxyType

from gpupool.errors import UsageError
from gpupool.schedule import aegaeon, autoscaling, deadlines, fcfs
from gpupool.schedule.autoscaling import Scaling
from gpupool.schedule.costs import Costs
from gpupool.schedule.patience import Decide, patient
from gpupool.schedule.work import Device, Goals, Request, State
from gpupool.simulate.assumptions import (
    ARTIFACT,
    ARTIFACT_FITS,
    HONEST,
    Assumptions,
    asked_of,
    checkpoints_of,
    cut,
)
from gpupool.simulate.checkpoints import Checkpoint
from gpupool.simulate.classes import ModelClass, classes_of
from gpupool.simulate.engine import Engine, Policy
from gpupool.simulate.holding import Sizes
from gpupool.simulate.host_tier import HostTier
from gpupool.simulate.loading import ArtifactLoader, Loader
from gpupool.simulate.profiles import Fit, known_fit
from gpupool.simulate.residency import ResidentLoader
from gpupool.simulate.result import FitResult, Result, result_of
from gpupool.simulate.trace import Arrival

POLICIES = ("autoscaling", "fcfs", "aegaeon", "deadlines")


@dataclass(frozen=True, slots=True)
class Hardware:
    """Devices of one kind, and the links to them."""

    devices: int = 16
    prefill_devices: int = 0
    """So many prefill only and the others decode only, under a policy that can; 0: all do both."""
    gpu: str = "H100"
    device_bytes: float = 80e9
    link_bytes_per_s: float = 16e9
    """What a copy from the host reaches."""
    host_bytes: float | None = None
    """For weights, all devices together, each group its part; None: enough."""
    disk_bytes_per_s: float = 3e9
    groups: int = 1
    """Devices and models are dealt out to so many groups, each of which keeps to itself."""


def simulate(
    trace: Sequence[Arrival],
    policy: str,
    hardware: Hardware,
    *,
    assumptions: Assumptions = HONEST,
    fits: Mapping[tuple[str, str], Fit] = MappingProxyType({}),
    checkpoints: Mapping[str, Checkpoint] = MappingProxyType({}),
    scaling: Scaling = Scaling(),  # noqa: B008 - frozen
    classes: Sequence[ModelClass] = (),
    ttft_s: float = 10.0,
    tbt_s: float = 0.1,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Serve a trace and say how it went. Raises UsageError.

    ``fits`` are times measured, for models that have none the calibration that comes with gpupool
    is used; the artifact's assumptions bring their own. ``checkpoints`` says what models are, by
    name, that are not what ``checkpoints_of`` takes them for; ``scaling`` is for the policy
    ``autoscaling``. Tokens are due ``ttft_s`` after a request came and every ``tbt_s`` from then
    on, but for models of ``classes``, which have goals of their own. ``progress`` is told how many
    requests have come. The same arguments give the same result.
    """
    if policy not in POLICIES:
        raise UsageError(f"there is no policy {policy}; there are {', '.join(POLICIES)}")
    if policy == "aegaeon" and not 0 <= hardware.prefill_devices < hardware.devices:
        raise UsageError(
            f"of {hardware.devices} devices {hardware.prefill_devices} cannot prefill only"
        )
    if not 1 <= hardware.groups <= hardware.devices:
        raise UsageError(f"{hardware.devices} devices cannot be {hardware.groups} groups")
    found = {**checkpoints_of(trace, assumptions), **checkpoints}
    asked = asked_of(trace, assumptions, seed)
    workload = [cut(arrival, found[arrival.model], assumptions) for arrival in asked]
    if not workload:
        raise UsageError("no request of the trace counts")
    keys = {name: key for key, name in enumerate(dict.fromkeys(a.model for a in workload))}
    costs = {key: _costs(found[name], hardware, assumptions, fits) for name, key in keys.items()}
    starts = policy == "autoscaling"
    sizes = {
        key: _sizes(found[name], costs[key], assumptions, starts=starts)
        for name, key in keys.items()
    }
    goals = Goals(ttft_s, tbt_s)
    class_of = classes_of(keys, classes, goals) if classes else {}
    outputs = [arrival.output_tokens for arrival in workload]
    requests: list[list[Request]] = [[] for _ in range(hardware.groups)]
    for key, arrival in enumerate(workload):
        model = keys[arrival.model]
        requests[model % hardware.groups].append(
            Request(key, model, arrival.at_s, arrival.input_tokens)
        )
    engines = []
    for group, of_group in enumerate(requests):
        before = sum(map(len, requests[:group]))
        state = State(
            _devices(policy, hardware, group),
            costs,
            goals,
            {keys[name]: of.goals for name, of in class_of.items()},
            {keys[name]: of.weight for name, of in class_of.items()},
            patience_s=assumptions.patience_s,
        )
        engine = Engine(
            state,
            _policy(policy, assumptions, scaling),
            _loader(policy, hardware, assumptions, costs, sizes, scaling),
            outputs,
            grain_s=assumptions.grain_s,
        )
        engine.run(of_group, None if progress is None else partial(_add, progress, before))
        engines.append(engine)
    return result_of(
        engines,
        policy=policy,
        assumptions=assumptions.name,
        devices=hardware.devices,
        prefill_devices=hardware.prefill_devices if policy == "aegaeon" else 0,
        models=[arrival.model for arrival in workload],
        cut=sum(served != whole for served, whole in zip(workload, asked, strict=True)),
        classes=class_of,
        fits=_fits_used({found[name].name for name in keys}, hardware.gpu, assumptions, fits),
    )


def _fits_used(
    checkpoints: Set[str],
    gpu: str,
    assumptions: Assumptions,
    fits: Mapping[tuple[str, str], Fit],
) -> list[FitResult]:
    if assumptions.name == ARTIFACT.name:  # which brings its own
        return []
    return [
        FitResult(model, gpu, fit.points, fit.left_out, fit.error_median, fit.error_worst)
        for (model, on), fit in fits.items()
        if on == gpu and model in checkpoints
    ]


def _add(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _devices(policy: str, hardware: Hardware, group: int) -> list[Device]:
    """The devices of one group: as even a part of all, and of those that prefill, as can be."""

    def part(of: int) -> int:
        return of * (group + 1) // hardware.groups - of * group // hardware.groups

    count = part(hardware.devices)
    split = part(hardware.prefill_devices) if policy == "aegaeon" else 0
    if hardware.prefill_devices and policy == "aegaeon" and not 0 < split < count:
        raise UsageError(f"of {count} devices {split} cannot prefill only")
    return [
        Device(key, prefills=not split or key < split, decodes=key >= split) for key in range(count)
    ]


def _policy(name: str, assumptions: Assumptions, scaling: Scaling) -> Policy:
    """``patient`` as it is live, but where the artifact looks only as the next request comes."""
    as_artifact = assumptions.name == ARTIFACT.name
    decides: dict[str, Decide] = {
        "autoscaling": partial(autoscaling.decide, scaling=scaling),
        "fcfs": fcfs.decide,
        "aegaeon": aegaeon.decide_as_artifact if as_artifact else aegaeon.decide,
        "deadlines": deadlines.decide,
    }
    decide = decides[name] if as_artifact else patient(decides[name])
    return Policy(decide, replans=name == "deadlines", gives_up_in_time=not as_artifact)


def _costs(
    checkpoint: Checkpoint,
    hardware: Hardware,
    assumptions: Assumptions,
    fits: Mapping[tuple[str, str], Fit],
) -> Costs:
    if assumptions.name == ARTIFACT.name:
        if checkpoint.name not in ARTIFACT_FITS:
            raise UsageError(
                f"{ARTIFACT.name} has no times of {checkpoint.name}: use {HONEST.name} assumptions"
            )
        fit = ARTIFACT_FITS[checkpoint.name]
    else:
        fit = known_fit(checkpoint.name, hardware.gpu, fits)
    room = hardware.device_bytes * assumptions.memory_share - checkpoint.weights_bytes
    kv_tokens_max = int(room * assumptions.kv_share / checkpoint.kv_bytes_per_token)
    if kv_tokens_max < checkpoint.context_tokens_max:
        held = checkpoint.context_tokens_max * checkpoint.kv_bytes_per_token / assumptions.kv_share
        least_bytes = (checkpoint.weights_bytes + held) / assumptions.memory_share
        least_gb = ceil(least_bytes / 1e8) / 10
        raise UsageError(
            f"{checkpoint.name} does not fit a device with {checkpoint.context_tokens_max} tokens:"
            f" give it devices of {least_gb:.1f} GB or more, or fewer tokens of context"
        )
    kv_s = checkpoint.kv_bytes_per_token / hardware.link_bytes_per_s
    load_s, fixed_s = checkpoint.weights_bytes / hardware.link_bytes_per_s, 0.0
    if (measured := checkpoint.switch) is not None:
        kv_s = checkpoint.kv_bytes_per_token * measured.copy_s_per_byte
        load_s, fixed_s = checkpoint.weights_bytes * measured.s_per_byte, measured.fixed_s
    return Costs(
        prefill_s=fit.prefill_s,
        step_s=fit.step_s,
        switch_s=fixed_s + load_s,
        kv_s_per_token=assumptions.kv_s_per_token or kv_s,
        kv_tokens_max=kv_tokens_max,
        switch_fixed_s=fixed_s,
    )


def _sizes(
    checkpoint: Checkpoint, costs: Costs, assumptions: Assumptions, *, starts: bool
) -> Sizes:
    """``starts``: a switch is the start of an engine, which has its own least time."""
    held = checkpoint.kv_bytes_per_token / assumptions.kv_share
    sizes = Sizes(checkpoint.weights_bytes, held, costs.kv_s_per_token)
    if (measured := checkpoint.switch) is None:
        return sizes
    return replace(
        sizes,
        switch_fixed_s=None if starts else measured.fixed_s,
        load_s_per_byte=measured.s_per_byte,
        fetch_s_per_byte=measured.copy_s_per_byte,
    )


def _loader(
    policy: str,
    hardware: Hardware,
    assumptions: Assumptions,
    costs: Mapping[int, Costs],
    sizes: Mapping[int, Sizes],
    scaling: Scaling,
) -> Loader:
    if assumptions.prefetches_anything and policy in ("fcfs", "aegaeon"):
        in_rounds = policy == "aegaeon"
        return ArtifactLoader(
            costs, assumptions.switch_s_min, prefetches=in_rounds, moves_kv=in_rounds
        )
    host = None
    if hardware.host_bytes is not None:
        host = HostTier(hardware.host_bytes / hardware.groups, hardware.disk_bytes_per_s)
    return ResidentLoader(
        sizes,
        capacity_bytes=hardware.device_bytes * assumptions.memory_share,
        link_bytes_per_s=hardware.link_bytes_per_s,
        switch_s_min=scaling.start_s if policy == "autoscaling" else assumptions.switch_s_min,
        warm=policy == "deadlines",
        host=host,
    )
