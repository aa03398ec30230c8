"""Which policy a daemon goes by, and where it writes down what that decides."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from gpupool.arbiter import Arbiter
from gpupool.daemon.conducting import Conducting
from gpupool.live import Conductor
from gpupool.schedule.recording import Decided, to_line
from gpupool.schedule.work import Goals

logger = logging.getLogger("gpupool")


class Recording:
    """A file of decisions, a line each. Where it cannot be written, it ends there."""

    def __init__(self, path: Path, policy: str) -> None:
        """Make the file; one that is there is kept beside it. Raises OSError."""
        if path.exists():
            path.replace(path.with_name(f"{path.name}.before"))
        self._file: TextIO | None = path.open("w")
        self._path = path
        self._policy = policy

    def write(self, decided: Decided) -> None:
        """Add one decision."""
        if self._file is not None:
            try:
                self._file.write(to_line(self._policy, decided))
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Write what is left; idempotent."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)
            self._file = None

    def _give_up(self, error: OSError) -> None:
        logger.warning("gpupool: no more decisions are recorded in %s: %s", self._path, error)
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None


@dataclass(frozen=True)
class LivePolicy:
    """Turns of one length, or a policy of requests and what it needs to know."""

    name: str = "turns"
    goals: Goals = Goals()  # noqa: RUF009 - frozen
    patience_s: float | None = None
    """A request whose model had no turn for so long is given up; None: never."""
    record: Callable[[Decided], None] | None = None
    """What to do with each decision."""

    def over(self, arbiter: Arbiter, revoke_timeout_s: float) -> Conducting:
        """The policy, at work over these leases."""
        conducting = Conducting(self.name)
        if self.name != "turns":
            conducting.conductor = Conductor(
                arbiter,
                self.name,
                self.goals,
                turn_s=arbiter.turn_s,
                silent_s=revoke_timeout_s,
                patience_s=self.patience_s,
                give_up=conducting.give_up,
                record=self.record,
            )
        return conducting


TURNS = LivePolicy()
