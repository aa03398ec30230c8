"""What the demo measured, and whether it shows what it set out to show. Pure numbers."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from demo.chats import ModelRun
from demo.questions import Answer, differing_tokens

MIN_SWAPS_INSIDE_ANSWERS = 100
MIN_COLD_START_OVER_SWAP_IN = 200


@dataclass(frozen=True)
class ModelFigures:
    """One model's part. Times are medians unless named otherwise."""

    name: str
    footprint_bytes: int
    requests: int
    tokens: int
    differing_tokens: int
    tokens_per_s: float
    swaps: int
    swaps_inside_answers: int
    swap_in_ms_median: float
    swap_in_ms_p99: float
    swap_in_bytes: int
    swap_in_gbps: float
    copy_gbps: float
    memcpy_gbps: float
    lease_wait_ms: float
    cold_start_s: float

    @property
    def cold_start_over_swap_in(self) -> float:
        """How many times longer a cold start takes than the median swap-in."""
        return self.cold_start_s * 1000 / self.swap_in_ms_median


@dataclass(frozen=True)
class Figures:
    """The whole demo."""

    budget_bytes: int
    memcpy_gbps: float
    models: list[ModelFigures]
    swap_in_ms_median: float
    swap_in_ms_p99: float
    swap_in_gbps_median: float
    swap_in_copy_gbps_median: float

    @property
    def differing_tokens(self) -> int:
        """Tokens that are not what the model gives when it runs alone."""
        return sum(model.differing_tokens for model in self.models)

    @property
    def swaps_inside_answers(self) -> int:
        """Swap-ins between a model's first token and its last, of all models."""
        return sum(model.swaps_inside_answers for model in self.models)

    @property
    def cold_start_over_swap_in(self) -> float:
        """Of the model for which it is least."""
        return min(model.cold_start_over_swap_in for model in self.models)

    def failures(self) -> list[str]:
        """One sentence for each thing that the demo should have shown and did not."""
        found = []
        if self.differing_tokens:
            names = [model.name for model in self.models if model.differing_tokens]
            found.append(
                f"{self.differing_tokens} tokens differ from the same model run alone "
                f"({', '.join(names)})."
            )
        if self.swaps_inside_answers < MIN_SWAPS_INSIDE_ANSWERS:
            found.append(
                f"Only {self.swaps_inside_answers} swap-ins fell inside answers, not "
                f"{MIN_SWAPS_INSIDE_ANSWERS}."
            )
        if self.cold_start_over_swap_in < MIN_COLD_START_OVER_SWAP_IN:
            found.append(
                f"A swap-in is only {self.cold_start_over_swap_in:.0f} times faster than the cold "
                f"start of the same engine, not {MIN_COLD_START_OVER_SWAP_IN}."
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """What goes into demo.json."""
        return {
            "answers": sum(model.requests for model in self.models),
            "tokens": sum(model.tokens for model in self.models),
            "differing_tokens": self.differing_tokens,
            "swaps": sum(model.swaps for model in self.models),
            "swaps_inside_answers": self.swaps_inside_answers,
            "swap_in_ms_median": self.swap_in_ms_median,
            "swap_in_ms_p99": self.swap_in_ms_p99,
            "swap_in_gbps_median": self.swap_in_gbps_median,
            "swap_in_copy_gbps_median": self.swap_in_copy_gbps_median,
            "memcpy_gbps": self.memcpy_gbps,
            "cold_start_s_median": statistics.median(m.cold_start_s for m in self.models),
            "cold_start_over_swap_in": self.cold_start_over_swap_in,
            "budget_bytes": self.budget_bytes,
            "models": [asdict(model) for model in self.models],
        }


def check_budget(daemon: dict[str, Any]) -> str | None:
    """What is wrong with the budget, which must hold each model and no two of them."""
    footprints = sorted(model["footprint_bytes"] for model in daemon["models"])
    budget = daemon["budget_bytes"]
    if footprints[-1] > budget:
        return f"The budget of {budget} bytes does not hold the largest model: {footprints[-1]}."
    if sum(footprints[:2]) <= budget:
        return (
            f"The budget of {budget} bytes holds two models at once ({footprints[0]} and "
            f"{footprints[1]} bytes): nothing would have to be swapped."
        )
    return None


def gather(
    before: dict[str, Any],
    after: dict[str, Any],
    rounds: list[dict[str, ModelRun]],
    expected: dict[str, list[Answer]],
    memcpy_gbps: dict[str, float],
) -> Figures:
    """Figures of the swaps between two answers of `GET /status`, and of the chats between them.

    `memcpy_gbps` holds, for each model, the speed of a plain copy as large as its footprint.
    Raises ValueError when a model was not swapped in at all between the two.
    """
    swapped = {name: _swap_ins(before, after, name) for name in expected}
    everything = [one for swap_ins in swapped.values() for one in swap_ins]
    models = []
    for name, answers in expected.items():
        runs = [each[name] for each in rounds]
        got = [answer for run in runs for answer in run.answers]
        tokens = sum(len(answer.token_ids) for answer in got)
        swap_ins = swapped[name]
        models.append(
            ModelFigures(
                name=name,
                footprint_bytes=_model(after, name)["footprint_bytes"],
                requests=len(got),
                tokens=tokens,
                differing_tokens=sum(
                    differing_tokens(one, other)
                    for run in runs
                    for one, other in zip(answers, run.answers, strict=True)
                ),
                tokens_per_s=tokens / sum(run.seconds for run in runs),
                swaps=len(swap_ins),
                swaps_inside_answers=sum(run.swaps_inside_answers for run in runs),
                swap_in_ms_median=1000 * statistics.median(one.seconds for one in swap_ins),
                swap_in_ms_p99=1000 * _p99([one.seconds for one in swap_ins]),
                swap_in_bytes=int(statistics.median(one.copied_bytes for one in swap_ins)),
                swap_in_gbps=statistics.median(one.gbps for one in swap_ins),
                copy_gbps=statistics.median(one.copy_gbps for one in swap_ins),
                memcpy_gbps=memcpy_gbps[name],
                lease_wait_ms=1000 * statistics.median(one.wait_s for one in swap_ins),
                cold_start_s=_cold_start_s(after, name),
            )
        )
    return Figures(
        budget_bytes=after["daemon"]["budget_bytes"],
        memcpy_gbps=statistics.median(memcpy_gbps.values()),
        models=models,
        swap_in_ms_median=1000 * statistics.median(one.seconds for one in everything),
        swap_in_ms_p99=1000 * _p99([one.seconds for one in everything]),
        swap_in_gbps_median=statistics.median(one.gbps for one in everything),
        swap_in_copy_gbps_median=statistics.median(one.copy_gbps for one in everything),
    )


def measure_memcpy_gbps(size_bytes: int, runs: int = 11) -> float:
    """Median speed of a plain copy of `size_bytes` in memory touched before, in 1e9 bytes/s."""
    source = np.ones(size_bytes, dtype=np.uint8)
    target = np.zeros(size_bytes, dtype=np.uint8)
    seconds = []
    for _ in range(runs + 2):
        begun_s = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - begun_s)
    return size_bytes / statistics.median(seconds[2:]) / 1e9


def swap_ins_of(status: dict[str, Any], name: str) -> int:
    """How often the model was swapped in since it started."""
    return int(_model(status, name)["swap_ins"])


@dataclass(frozen=True)
class _SwapIn:
    seconds: float
    copied_bytes: int
    copy_s: float
    wait_s: float

    @property
    def gbps(self) -> float:
        return self.copied_bytes / self.seconds / 1e9

    @property
    def copy_gbps(self) -> float:
        return self.copied_bytes / self.copy_s / 1e9


def _swap_ins(before: dict[str, Any], after: dict[str, Any], name: str) -> list[_SwapIn]:
    model = _model(after, name)
    count = swap_ins_of(after, name) - swap_ins_of(before, name)
    if count < 1:
        raise ValueError(f"model {name} was not swapped in while it answered")
    columns = (
        model[column][-count:]
        for column in ("swap_in_s", "swap_in_copied_bytes", "swap_in_copy_s", "lease_wait_s")
    )
    return [_SwapIn(*values) for values in zip(*columns, strict=True)]


def _model(status: dict[str, Any], name: str) -> dict[str, Any]:
    models: list[dict[str, Any]] = status["daemon"]["models"]
    return next(model for model in models if model["name"] == name)


def _cold_start_s(status: dict[str, Any], name: str) -> float:
    return float(next(e["cold_start_s"] for e in status["engines"] if e["name"] == name))


def _p99(values: list[float]) -> float:
    return float(np.percentile(values, 99, method="higher"))
