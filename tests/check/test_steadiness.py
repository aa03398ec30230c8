"""What is found to grow, and what is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def steadiness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import importlib

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("steadiness")


over_series = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def series(seed: int, count: int, noise: int, value: Callable[[int], int]) -> list[dict[str, int]]:
    """Two figures of two processes, of which one has the values and the noise."""
    drawn = random.Random(seed)
    return [
        {"daemon quiet": 5, "worker loud": value(at) + drawn.randint(0, noise)}
        for at in range(count)
    ]


@over_series
@given(
    seed=st.integers(0, 1 << 32),
    count=st.integers(20, 400),
    noise=st.integers(0, 1000),
    # Whatever comes in the warm-up, and whatever falls later.
    warm=st.integers(-(10**6), 10**6),
    falls=st.integers(0, 10),
)
def test_noise_does_not_grow(
    seed: int, count: int, noise: int, warm: int, falls: int, steadiness: ModuleType
) -> None:
    samples = series(
        seed, count, noise, lambda at: warm if at < count // 10 else 10**7 - falls * at
    )
    verdicts = steadiness.judged(samples, {"quiet": 0, "loud": noise})
    assert verdicts.keys() == {"daemon quiet", "worker loud"}
    assert not any(verdict.grew for verdict in verdicts.values())


@over_series
@given(
    seed=st.integers(0, 1 << 32),
    count=st.integers(20, 400),
    noise=st.integers(0, 1000),
    tolerance=st.integers(0, 1000),
    every=st.integers(1, 5),
)
def test_what_grows_by_more_than_noise_and_tolerance_is_found(
    seed: int, count: int, noise: int, tolerance: int, every: int, steadiness: ModuleType
) -> None:
    # From the end of the first tenth to the beginning of the last are at least seven tenths.
    step = (noise + tolerance + 1) * every
    steps_sure = 7 * count // 10 // every - 1
    rise = -(-step // max(1, steps_sure))
    samples = series(seed, count, noise, lambda at: at // every * rise * every)
    verdicts = steadiness.judged(samples, {"quiet": 0, "loud": tolerance})
    assert verdicts["worker loud"].grew
    assert not verdicts["daemon quiet"].grew


def test_too_few_samples(steadiness: ModuleType) -> None:
    with pytest.raises(ValueError, match="19 samples are too few"):
        steadiness.judged([{"quiet": 1}] * 19, {"quiet": 0})
