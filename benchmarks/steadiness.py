"""Whether figures that were taken again and again stayed as they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SAMPLES_MIN = 20
PART = 10  # one in so many samples is warm-up, beginning, or end


@dataclass(frozen=True)
class Verdict:
    """One figure: its least and its largest value at the beginning and at the end."""

    figure: str
    first: tuple[int, int]
    last: tuple[int, int]
    tolerance: int

    @property
    def grew(self) -> bool:
        """Whether all values of the end are above all of the beginning, by more than the tolerance.

        What goes up and down is not found to grow for that; what grows at every turn is, since
        sooner or later it is above all that it once was.
        """
        return self.last[0] > self.first[1] + self.tolerance


def judged(
    samples: Sequence[Mapping[str, int]], tolerances: Mapping[str, int]
) -> dict[str, Verdict]:
    """Each figure of the samples, which all have the same ones; tolerances go by its last word.

    The first tenth is a warm-up and counts for nothing; of the others the first tenth is compared
    with the last. Raises ValueError for fewer samples than SAMPLES_MIN.
    """
    if len(samples) < SAMPLES_MIN:
        raise ValueError(f"{len(samples)} samples are too few: {SAMPLES_MIN} at least")
    kept = samples[len(samples) // PART :]
    tenth = max(1, len(kept) // PART)

    def ends(values: Sequence[int]) -> tuple[int, int]:
        return min(values), max(values)

    return {
        figure: Verdict(
            figure,
            ends([sample[figure] for sample in kept[:tenth]]),
            ends([sample[figure] for sample in kept[-tenth:]]),
            tolerances[figure.rpartition(" ")[2]],
        )
        for figure in kept[0]
    }
