"""What the simulator takes to be so, by name: ours, or those of Aegaeon's artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpupool.simulate.checkpoints import CHECKPOINTS, MIX, Checkpoint
from gpupool.simulate.profiles import Fit
from gpupool.simulate.trace import Arrival


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Where the two sets differ."""

    name: str
    grain_s: float = 0.0
    """Times are cut to multiples of it."""
    patience_s: float | None = None
    """Requests without a token after so long are given up, when the next request comes."""
    memory_share: float = 0.9
    """Of a device's memory so much is for weights and KV."""
    kv_share: float = 0.8
    """Of the memory for KV so much holds KV: the rest is what slabs waste."""
    switch_s_min: float = 0.01
    kv_s_per_token: float | None = None
    """To bring the KV of a token in, for every model; None: its bytes over the link."""
    prefetches_anything: bool = False
    """A switch of a policy in rounds is shortened by all that was computed since the one before,
    whether or not anybody knew what came next, and whatever room there was; its KV comes in anew at
    each turn."""
    arrivals_before_s: float | None = None
    """Later requests do not count, and lengths are drawn anew."""
    cut_more_tokens: int = 0
    cut_from_tokens: int = 0
    """A request that is too long is cut as if it had so many more tokens, and so many at least."""


HONEST = Assumptions("honest")
ARTIFACT = Assumptions(
    "aegaeon-artifact",
    grain_s=0.001,
    patience_s=15.0,
    memory_share=1.0,
    kv_s_per_token=0.0005 / 16,
    prefetches_anything=True,
    arrivals_before_s=120.0,
    cut_more_tokens=32,
    cut_from_tokens=16384,
)
ASSUMPTIONS = {found.name: found for found in (HONEST, ARTIFACT)}

# The artifact's checkpoints and times on H100: KV as if every model had as many KV heads as heads,
# squares and contexts that make things quicker, and a batch of -1 in every decode step (the last
# figure of a step, taken off its first).
ARTIFACT_CHECKPOINTS = {
    "qwen2_5_7b": Checkpoint("qwen2_5_7b", 14e9, 4 * 28 * 3584, 8192),
    "yi1_5_9b_chat": Checkpoint("yi1_5_9b_chat", 18e9, 4 * 48 * 4096, 4096),
    "llama2_13b_chat": Checkpoint("llama2_13b_chat", 26e9, 4 * 40 * 5120, 4096),
}
ARTIFACT_FITS = {
    "qwen2_5_7b": Fit(
        (0.016105319238, 1.462442546e-5, -6.637200163e-10),
        (0.008582226324 - 7.61476507e-5, 2.589395964e-7, 0.0),
    ),
    "yi1_5_9b_chat": Fit(
        (0.008493644363, 2.685196672e-5, -6.151448745e-10),
        (0.013811617165 - 8.124200391e-5, -2.932186433e-7, 0.0),
    ),
    "llama2_13b_chat": Fit(
        (0.007455501539, 4.11980569e-5, -1.185810829e-9),
        (0.012492969301 - 1.150557187e-4, 1.253926041e-7, 0.0),
    ),
}


def checkpoints_of(trace: Sequence[Arrival], assumptions: Assumptions) -> dict[str, Checkpoint]:
    """Of each model of a trace; models with other names than checkpoints get those of ``MIX``."""
    known = ARTIFACT_CHECKPOINTS if assumptions.name == ARTIFACT.name else CHECKPOINTS
    found: dict[str, Checkpoint] = {}
    for arrival in trace:
        if arrival.model not in found:
            named = arrival.model if arrival.model in known else MIX[len(found) % len(MIX)]
            found[arrival.model] = known[named]
    return found


def asked_of(trace: Sequence[Arrival], assumptions: Assumptions, seed: int) -> list[Arrival]:
    """The requests that count, as long as they are: some models cannot take all of one.

    Raises ModuleNotFoundError under assumptions that draw lengths anew, where numpy is missing.
    """
    if assumptions.arrivals_before_s is None:
        return list(trace)
    found = [arrival for arrival in trace if arrival.at_s < assumptions.arrivals_before_s]
    return _drawn_anew(found, seed)


def _drawn_anew(trace: Sequence[Arrival], seed: int) -> list[Arrival]:
    """Lengths drawn from those of the trace, with replacement, by the artifact's own generator.

    They are dealt out model by model, in order of first appearance, as it does: so a seed gives the
    draw that it has with that seed, and 0 the published one.
    """
    if not trace:
        return []
    import numpy as np

    drawn = np.random.default_rng(seed).choice(len(trace), size=len(trace)).tolist()
    of_model: dict[str, list[int]] = {}
    for place, arrival in enumerate(trace):
        of_model.setdefault(arrival.model, []).append(place)
    found = list(trace)
    places = (place for own in of_model.values() for place in own)
    for place, other in zip(places, drawn, strict=True):
        found[place] = Arrival(*trace[place][:2], *trace[other][2:])
    return found


def cut(arrival: Arrival, checkpoint: Checkpoint, assumptions: Assumptions) -> Arrival:
    """A request, the same if it is not too long, else with its prompt and answer in proportion."""
    tokens_max = checkpoint.context_tokens_max
    whole = arrival.input_tokens + arrival.output_tokens
    if whole <= tokens_max:
        return arrival
    share = tokens_max / max(whole + assumptions.cut_more_tokens, assumptions.cut_from_tokens)
    return arrival._replace(
        input_tokens=max(1, int(arrival.input_tokens * share)),
        output_tokens=max(1, int(arrival.output_tokens * share)),
    )


def with_patience(assumptions: Assumptions, patience_s: float | None) -> Assumptions:
    """The same, with requests given up after so long; None changes nothing."""
    return assumptions if patience_s is None else replace(assumptions, patience_s=patience_s)
