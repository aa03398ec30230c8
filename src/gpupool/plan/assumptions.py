"""What a plan takes to be so, in sentences."""

from __future__ import annotations

from gpupool.plan.market import Market


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
        "aegaeon: tokens, in rounds; 3 of 8 devices prefill only (up or down), or none, as is"
        " better. deadlines: tokens, by deadline.",
        "Weights of models that share devices are in host memory, of which there is enough.",
        "90% of a device's memory is for weights and KV; what else is assumed is in"
        " docs/simulate.md, honest.",
    ]
    if market.profiles is not None:
        found.append(
            f"What {market.profiles} has was measured: times, and where it has sizes of a model,"
            " its switches."
        )
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
