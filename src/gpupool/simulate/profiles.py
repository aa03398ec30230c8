"""Step and prefill times of a model on a GPU, as fits of measurements."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpupool.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_COLUMNS = ("model", "gpu", "input_tokens", "batch_size", "prefill_s", "decode_step_s")
_PREFILL_TOKENS_MAX = 4096
"""Measured batches of more prompt tokens took several steps, each a part of the prompts: their
times to the first token are of the first step, and their decode steps have prefills in them."""
_OUTLIER = 0.1
"""Points this far off, and four times as far as is usual, are left out and the fit made anew."""


class Fit(NamedTuple):
    """Coefficients of ``schedule.costs.Costs``, and how well they fit."""

    prefill_s: tuple[float, float, float]
    step_s: tuple[float, float, float]
    points: int = 0
    left_out: int = 0
    error_median: float = 0.0
    """Of all relative errors, prefills and steps, also of points that were left out."""


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
"""Fits by ``fit_profiles`` of the measurements published with the artifact of Aegaeon (SOSP 2025,
Apache-2.0): vLLM in 16 bits on one GPU, 16 to 4096 prompt tokens, 1 to 200 requests."""


def calibrated(model: str, gpu: str) -> Fit:
    """The fit that comes with gpupool. Raises UsageError."""
    try:
        return _CALIBRATED[model, gpu]
    except KeyError:
        known = ", ".join(f"{a} on {b}" for a, b in _CALIBRATED)
        raise UsageError(
            f"no times are known of {model} on {gpu}; give a file of profiles, or use {known}"
        ) from None


def fit_profiles(path: Path) -> dict[tuple[str, str], Fit]:
    """Fits of a CSV file, by model and GPU. Raises UsageError, OSError, ModuleNotFoundError.

    Its columns are model, gpu, input_tokens, batch_size, prefill_s and decode_step_s: a batch of so
    many prompts of that length was prefilled in one step, and then decoded. Least squares of
    relative errors, without negative coefficients.
    """
    points: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := set(_COLUMNS) - set(reader.fieldnames or ()):
            raise UsageError(f"{path}: it has no column {', '.join(sorted(missing))}")
        for row in reader:
            try:
                point = tuple(float(row[name]) for name in _COLUMNS[2:])
            except (TypeError, ValueError):
                raise UsageError(f"{path}, line {reader.line_num}: not all are numbers") from None
            if not all(0 < value < 1e9 for value in point):
                raise UsageError(f"{path}, line {reader.line_num}: not all are above zero")
            points.setdefault((row["model"], row["gpu"]), []).append(point)
    return {key: _fit(found) for key, found in points.items()}


def _fit(points: Iterable[tuple[float, ...]]) -> Fit:
    import numpy as np

    all_of = np.array(list(points))
    whole = all_of[all_of[:, 0] * all_of[:, 1] <= _PREFILL_TOKENS_MAX]
    if len(whole) < 4:
        raise UsageError("a profile needs at least 4 points of at most 4096 prompt tokens together")
    length, batch, prefill_s, step_s = whole.T
    one = np.ones_like(length)
    prefill, errors_p, used_p = _least(
        np.stack([one, length * batch, length**2 * batch], 1), prefill_s
    )
    step, errors_s, used_s = _least(np.stack([one, length * batch, batch], 1), step_s)
    return Fit(
        prefill,
        step,
        points=len(all_of),
        left_out=len(all_of) - min(used_p, used_s),
        error_median=float(np.median(np.concatenate([errors_p, errors_s]))),
    )


def _least(
    terms: np.ndarray, times_s: np.ndarray
) -> tuple[tuple[float, float, float], np.ndarray, int]:
    import numpy as np

    kept = np.ones(len(times_s), dtype=bool)
    found = np.zeros(3)
    errors = np.zeros(len(times_s))
    for _ in range(3):
        scaled = terms[kept] / times_s[kept, None]
        columns = [0, 1, 2]
        while True:
            part = np.linalg.lstsq(scaled[:, columns], np.ones(int(kept.sum())), rcond=None)[0]
            if (part >= 0).all():
                break
            columns = [c for c, value in zip(columns, part, strict=True) if value >= 0]
        found = np.zeros(3)
        found[columns] = part
        errors = np.abs(terms @ found - times_s) / times_s
        kept = errors <= max(_OUTLIER, 4 * float(np.median(errors[kept])))
    return (float(found[0]), float(found[1]), float(found[2])), errors, int(kept.sum())
