"""Step and prefill times of a model on a GPU, as fits of measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gpupool.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

POINTS_MIN = 4
"""A fit needs so many prefills of one step, and as many decode steps."""
_PREFILL_TOKENS_MAX = 4096
"""Measured batches of more prompt tokens, where it is not said how many steps they took, took
several, each a part of the prompts: their times to the first token are of the first step, and their
decode steps have prefills in them."""
_NEAR_MAX = 4
_OUTLIER = 0.1
"""Points this far off, and four times as far as is usual, are left out and the fit made anew."""


class Point(NamedTuple):
    """A batch of so many prompts of that length was prefilled, and then decoded."""

    input_tokens: int
    batch_size: int
    prefill_s: float
    decode_step_s: float
    prefill_steps: int | None = None
    """Decode steps were timed after the last of them; None: not known."""


class Fit(NamedTuple):
    """Coefficients of ``schedule.costs.Costs``, and how well they fit."""

    prefill_s: tuple[float, float, float]
    step_s: tuple[float, float, float]
    points: int = 0
    left_out: int = 0
    """Points of which the prefill, the step, or both were not used."""
    error_median: float = 0.0
    """Of all relative errors, prefills and steps, also of outliers."""
    error_worst: float = 0.0
    """Of those that were used."""


class Verdict(NamedTuple):
    """How a fit stands to one time of a point."""

    error: float | None
    """Relative: what the fit says over what was measured, less 1; None: not compared."""
    left_out: str = ""
    """Why it was not used; empty if it was."""


_CALIBRATED: dict[tuple[str, str], Fit] = {
    ("qwen2_5_7b", "H100"): Fit((7.063e-3, 1.960e-5, 0.0), (9.097e-3, 0.0, 6.76e-5)),
    ("yi1_5_9b_chat", "H100"): Fit((1.0722e-2, 2.388e-5, 0.0), (1.3631e-2, 0.0, 6.95e-5)),
    ("llama2_13b_chat", "H100"): Fit((8.011e-3, 3.884e-5, 0.0), (1.2307e-2, 2.793e-7, 1.030e-4)),
    ("qwen2_5_7b", "H800"): Fit((6.778e-3, 2.090e-5, 6.6e-11), (8.372e-3, 1.090e-7, 9.80e-5)),
    ("yi1_5_9b_chat", "H800"): Fit((9.472e-3, 2.651e-5, 0.0), (1.1621e-2, 1.389e-7, 9.47e-5)),
    ("llama2_13b_chat", "H800"): Fit(
        (9.349e-3, 4.194e-5, 2.4e-10), (1.2836e-2, 3.716e-7, 1.327e-4)
    ),
    ("qwen2_5_7b", "A100"): Fit((9.024e-3, 5.709e-5, 0.0), (1.2200e-2, 1.160e-7, 1.264e-4)),
    ("yi1_5_9b_chat", "A100"): Fit((9.570e-3, 7.570e-5, 7.6e-10), (1.5431e-2, 7.86e-8, 1.332e-4)),
    ("llama2_13b_chat", "A100"): Fit((1.5554e-2, 1.1992e-4, 0.0), (2.0184e-2, 2.498e-7, 2.147e-4)),
    ("qwen2_5_7b", "H20"): Fit((5.706e-3, 1.0260e-4, 0.0), (1.2157e-2, 0.0, 1.142e-4)),
    ("yi1_5_9b_chat", "H20"): Fit((1.0479e-2, 1.3035e-4, 1.0e-9), (1.4193e-2, 0.0, 1.573e-4)),
    ("llama2_13b_chat", "H20"): Fit((1.4807e-2, 1.9373e-4, 0.0), (2.1503e-2, 2.623e-7, 2.718e-4)),
}
"""Fits by ``fit_points`` of the measurements published with the artifact of Aegaeon (SOSP 2025,
Apache-2.0): vLLM in 16 bits on one GPU, 16 to 4096 prompt tokens, 1 to 200 requests."""


def known_fit(model: str, gpu: str, measured: Mapping[tuple[str, str], Fit]) -> Fit:
    """What was measured, or else the fit that comes with gpupool. Raises UsageError."""
    found = measured.get((model, gpu)) or _CALIBRATED.get((model, gpu))
    if found is None:
        known = sorted({**measured, **_CALIBRATED}, key=lambda k: (k[0] != model, k[1] != gpu))
        close = [k for k in known if model in k or gpu in k] or known
        near = ", ".join(f"{a} on {b}" for a, b in close[:_NEAR_MAX])
        raise UsageError(
            f"no times are known of {model} on {gpu}; measure them (gpupool profile), or use those"
            f" of another, like {near}"
        )
    return found


def fit_points(points: Sequence[Point]) -> tuple[Fit, list[tuple[Verdict, Verdict]]]:
    """The fit, and of each point the verdicts on its prefill and its decode step.

    Least squares of relative errors, without negative coefficients. Raises UsageError for too few
    points, and ModuleNotFoundError.
    """
    import numpy as np

    prefill_skips = [_not_one_prefill(point) for point in points]
    step_skips = [_not_one_step(point) for point in points]
    length, batch, prefill_s, step_s = np.array([point[:4] for point in points], dtype=float).T
    one = np.ones_like(length)
    squares = np.stack([one, length * batch, length**2 * batch], 1)
    prefill, of_prefills = _fit(squares, prefill_s, prefill_skips)
    step, of_steps = _fit(np.stack([one, length * batch, batch], 1), step_s, step_skips)
    verdicts = list(zip(of_prefills, of_steps, strict=True))
    both = [*of_prefills, *of_steps]
    fit = Fit(
        prefill,
        step,
        points=len(points),
        left_out=sum(bool(a.left_out or b.left_out) for a, b in verdicts),
        error_median=float(np.median([abs(v.error) for v in both if v.error is not None])),
        error_worst=max(abs(v.error) for v in both if v.error is not None and not v.left_out),
    )
    return fit, verdicts


def _not_one_prefill(point: Point) -> str:
    if point.prefill_steps is None:
        return _not_one_step(point)
    return "" if point.prefill_steps == 1 else "several steps"


def _not_one_step(point: Point) -> str:
    unknown = point.prefill_steps is None
    long = point.input_tokens * point.batch_size > _PREFILL_TOKENS_MAX
    return f"over {_PREFILL_TOKENS_MAX} tokens" if unknown and long else ""


def _fit(
    terms: np.ndarray, times_s: np.ndarray, skips: Sequence[str]
) -> tuple[tuple[float, float, float], list[Verdict]]:
    import numpy as np

    chosen = np.array([not skip for skip in skips])
    if chosen.sum() < POINTS_MIN:
        raise UsageError(
            f"a profile needs at least {POINTS_MIN} points that were prefilled in one step, of at"
            f" most {_PREFILL_TOKENS_MAX} prompt tokens together where prefill_steps is not given"
        )
    found, errors, kept = least_squares(terms[chosen], times_s[chosen])
    judged = iter(
        Verdict(float(error), "" if used else "outlier")
        for error, used in zip(errors, kept, strict=True)
    )
    verdicts = [Verdict(None, skip) if skip else next(judged) for skip in skips]
    return (found[0], found[1], found[2]), verdicts


def least_squares(
    terms: np.ndarray, times_s: np.ndarray
) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Coefficients of the columns of ``terms``, none negative, errors, and what was used.

    Of relative errors; what is far off is left out, and the fit made anew.
    """
    import numpy as np

    kept = np.ones(len(times_s), dtype=bool)
    found = np.zeros(terms.shape[1])
    errors = np.zeros(len(times_s))
    for _ in range(3):
        scaled = terms[kept] / times_s[kept, None]
        columns = list(range(terms.shape[1]))
        while True:
            part = np.linalg.lstsq(scaled[:, columns], np.ones(int(kept.sum())), rcond=None)[0]
            if (part >= 0).all():
                break
            columns = [c for c, value in zip(columns, part, strict=True) if value >= 0]
        found = np.zeros(terms.shape[1])
        found[columns] = part
        errors = terms @ found / times_s - 1
        used, far = kept, np.abs(errors)
        kept = far <= max(_OUTLIER, 4 * float(np.median(far[used])))
    return [float(value) for value in found], errors, used
