"""Holds the needs against the sources, and says what is not there."""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.vllm import doors
from gpupool.vllm.hooks.hook import Hook, Need
from gpupool.vllm.hooks.needs import NEEDS
from gpupool.vllm.hooks.sources import Sources, mentions, missing_parameters
from gpupool.vllm.hooks.workers import WORKERS

MET, LOST, BROKEN = "there", "not there", "BROKEN"


@dataclass(frozen=True)
class Finding:
    """How it stands with one need."""

    what: str
    status: str
    form: str = ""
    without: str = ""
    missing: tuple[str, ...] = ()


def look(sources: Sources) -> list[Finding]:
    """One for each need, and one for what a worker does that gpupool does not know of."""
    return [*(_of(need, sources) for need in NEEDS), _unknown_doors(sources)]


def is_broken(findings: list[Finding]) -> bool:
    """Whether gpupool's worker cannot be expected to run."""
    return any(finding.status == BROKEN for finding in findings)


def wrong(hook: Hook, sources: Sources) -> str:
    """What is not as the hook has it, or nothing."""
    if sources.module(hook.module) is None:
        return f"there is no module {hook.module}"
    node = sources.find(hook.module, hook.name)
    if node is None:
        return f"{hook.module} has no {hook.name}"
    if missing := missing_parameters(node, hook.parameters):
        return f"{hook.module}.{hook.name} takes no {', '.join(missing)}"
    if unsaid := [word for word in hook.says if not mentions(node, word)]:
        return f"{hook.module}.{hook.name} says nothing of {', '.join(unsaid)}"
    return ""


def _of(need: Need, sources: Sources) -> Finding:
    closest: tuple[str, ...] | None = None
    for form, hooks in need.forms.items():
        missing = tuple(found for hook in hooks if (found := wrong(hook, sources)))
        if not missing:
            return Finding(need.what, MET, form)
        if closest is None or len(missing) < len(closest):
            closest = missing
    status = LOST if need.without else BROKEN
    return Finding(need.what, status, without=need.without, missing=closest or ())


def _unknown_doors(sources: Sources) -> Finding:
    known = doors.STEP | doors.LIFECYCLE | doors.READS | doors.WRITES | doors.FREE
    unknown = sorted(
        f"{module}.{name}.{method}"
        for module, name in WORKERS
        for method in sources.methods(module, name) - known
    )
    what = "every method of a worker has its door"
    if not unknown:
        return Finding(what, MET)
    missing = tuple(f"nothing is known of {each}" for each in unknown)
    return Finding(what, LOST, without="calls of these do not bring the model in", missing=missing)
