"""Numbers as options of commands."""

from __future__ import annotations

from math import isnan
from typing import Any

import click


class Number(click.FloatRange):
    """A range has nothing against NaN, which is neither below nor above its ends."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """As of a range, and no NaN."""
        number = float(super().convert(value, param, ctx))
        if isnan(number):
            self.fail(f"{number} is not in the range {self._describe_range()}.", param, ctx)
        return number


ABOVE_ZERO = Number(min=0, min_open=True, max=1e9)
