"""Tells people, or programs, how far the start has come."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from gpupool.serve.lifecycle import Phase

_REPEAT_S = 10.0
_MAX_TEXT = 100


class Reporter(Protocol):
    """What the application has to say."""

    def engine(self, name: str, phase: Phase, detail: str) -> None:
        """An engine's phase, or its latest line of log while it starts."""

    def ready(self, url: str) -> None:
        """All engines answer, behind `url`."""

    def stopping(self) -> None:
        """The end was asked for."""

    def error(self, message: str) -> None:
        """Why the run ends."""

    def close(self) -> None:
        """No more will be said."""


class LineReporter:
    """Plain lines, or JSON lines: each change, and every ten seconds what a start is doing."""

    def __init__(
        self,
        out: TextIO,
        err: TextIO,
        *,
        as_json: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out
        self._err = err
        self._as_json = as_json
        self._clock = clock
        self._told: dict[str, tuple[Phase, float, float]] = {}  # phase, since, last line

    def engine(self, name: str, phase: Phase, detail: str) -> None:
        """An engine's phase, or what its start is doing."""
        now_s = self._clock()
        before, since_s, last_s = self._told.get(name, (None, now_s, now_s))
        if phase is before and (phase is not Phase.STARTING or now_s - last_s < _REPEAT_S):
            return
        if phase is not before:
            since_s = now_s
        self._told[name] = (phase, since_s, now_s)
        elapsed = f" ({now_s - since_s:.0f} s)" if phase is before else ""
        text = f"{name}: {phase}{elapsed}" + (f": {detail}" if detail else "")
        self._say(text, event="engine", model=name, state=str(phase), detail=detail)

    def ready(self, url: str) -> None:
        """All engines answer."""
        self._say(f"gpupool ready: {url}", event="ready", url=url)

    def stopping(self) -> None:
        """The end was asked for."""
        self._say("stopping; once more to kill at once", event="stopping")

    def error(self, message: str) -> None:
        """Why the run ends."""
        if self._as_json:
            self._say("", event="error", message=message)
        else:
            print(f"gpupool: {message}", file=self._err, flush=True)

    def close(self) -> None:
        """Nothing more will be said."""

    def _say(self, text: str, **event: Any) -> None:
        print(json.dumps(event) if self._as_json else text, file=self._out, flush=True)


class TerminalReporter:
    """A live line for each engine while it starts, then plain lines."""

    def __init__(self, console: Console, lines: LineReporter) -> None:
        self._lines = lines
        self._tasks: dict[str, TaskID] = {}
        self._live: Progress | None = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[phase]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=console,
        )
        self._live.start()

    def engine(self, name: str, phase: Phase, detail: str) -> None:
        """An engine's phase, or what its start is doing."""
        if self._live is None:
            self._lines.engine(name, phase, detail)
            return
        if name not in self._tasks:
            self._tasks[name] = self._live.add_task(name, total=1, phase="", detail="")
        first_line = detail.partition("\n")[0]
        self._live.update(
            self._tasks[name],
            phase=str(phase),
            detail=first_line[:_MAX_TEXT],
            completed=int(phase is Phase.READY),
        )

    def ready(self, url: str) -> None:
        """All engines answer."""
        self.close()
        self._lines.ready(url)

    def stopping(self) -> None:
        """The end was asked for."""
        self.close()
        self._lines.stopping()

    def error(self, message: str) -> None:
        """Why the run ends."""
        self.close()
        self._lines.error(message)

    def close(self) -> None:
        """Nothing more will be said."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()


def choose_reporter(*, as_json: bool) -> Reporter:
    """Live on a terminal, plain lines elsewhere, JSON lines when asked for."""
    lines = LineReporter(sys.stdout, sys.stderr, as_json=as_json)
    console = Console()
    if as_json or not console.is_terminal:
        return lines
    return TerminalReporter(console, lines)
