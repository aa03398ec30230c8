"""Traces: what a device and its models did when, to be looked at in https://ui.perfetto.dev.

``Pool.trace`` records a block; with the environment variable ``GPUPOOL_TRACE=/folder/%p.json`` each
process records all of its life and writes it at its exit.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from gpupool._core import Driver, Observer, Trace, with_observer
from gpupool.checks import whole
from gpupool.errors import UsageError

VARIABLE = "GPUPOOL_TRACE"
MAX_EVENTS = 1_000_000

Values = dict[str, int | float | str]


@contextlib.contextmanager
def span(driver: Driver, name: str, values: Values) -> Iterator[None]:
    """Show the block in a trace, if one is on, with ``values`` as they are at its end."""
    observer = driver.observer
    if observer is None or not observer.tracing:
        yield
        return
    begin_ns = driver.now_ns()
    try:
        yield
    finally:
        shown = name.encode(errors="replace").decode()
        observer.span(shown, begin_ns, driver.now_ns(), values)


@contextlib.contextmanager
def record(driver: Driver, path: str | Path, max_events: int) -> Iterator[None]:
    """Trace an observed driver for the block; see ``Pool.trace``."""
    target = _target(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "no trace can be written to a folder", str(target))
    observer, process = driver.observer, os.getpid()
    assert observer is not None
    if observer.tracing:
        raise UsageError(
            f"this device is being traced already: end that trace first, or unset {VARIABLE}"
        )
    trace = Trace(whole("max_events", max_events))
    with _Output(target) as output:
        observer.start(trace)
        try:
            yield
        except BaseException as raised:
            observer.stop()
            if os.getpid() == process:
                try:
                    output.write(trace)
                except OSError as error:  # of the two, the caller's own is the one to hear of
                    raised.add_note(f"gpupool: the trace was not written: {error}")
            raise
        observer.stop()
        if os.getpid() == process:  # not in a forked child
            output.write(trace)


def observe(driver: Driver) -> Driver:
    """The same driver, counted, and in the trace of this process where there is one.

    Raises UsageError if GPUPOOL_TRACE names a folder that does not exist.
    """
    driver = with_observer(driver)
    path = os.environ.get(VARIABLE)
    if path and driver.observer is not None and not driver.observer.tracing:
        _trace_of_process(path).add(driver.observer)
    return driver


class _ProcessTrace:
    """One file for all devices of a process, written once."""

    def __init__(self, path: str) -> None:
        self._target = _target(path)
        if self._target.is_dir():
            raise UsageError(f"{VARIABLE}={path} is a folder: name a file in it, as %p.json")
        self._trace = Trace(MAX_EVENTS)
        self._observers: list[Observer] = []
        self._process = os.getpid()
        atexit.register(self.finish)
        # A child of multiprocessing that was forked leaves without the hooks of atexit.
        if "multiprocessing.util" in sys.modules:
            from multiprocessing.util import Finalize

            Finalize(None, self.finish, exitpriority=0)

    def add(self, observer: Observer) -> None:
        observer.start(self._trace)
        self._observers.append(observer)

    def finish(self) -> None:
        """Write it; nothing the second time, or in a forked child."""
        global _process_trace
        with _process_lock:
            if _process_trace is not self or os.getpid() != self._process:
                return
            _process_trace = None
            for observer in self._observers:
                observer.stop()
            try:
                with _Output(self._target) as output:
                    output.write(self._trace)
            except OSError as error:
                print(f"gpupool: the trace was not written: {error}", file=sys.stderr)


_process_lock = threading.RLock()
_process_trace: _ProcessTrace | None = None


def _trace_of_process(path: str) -> _ProcessTrace:
    global _process_trace
    with _process_lock:
        if _process_trace is None:
            _process_trace = _ProcessTrace(path)
        return _process_trace


def _forget_parent() -> None:
    """In a forked child, which traces what it opens itself."""
    global _process_lock, _process_trace
    _process_lock, _process_trace = threading.RLock(), None


os.register_at_fork(after_in_child=_forget_parent)


def _target(path: str | Path) -> Path:
    target = Path(str(path).replace("%p", str(os.getpid()))).absolute()
    if not target.parent.is_dir():
        raise UsageError(f"no trace can be written to {target}: make its folder first")
    return target


class _Output:
    """A trace's file: written whole or not at all, and refused before there is anything to lose."""

    def __init__(self, target: Path) -> None:
        """Begin it under another name. Raises OSError."""
        self._target = target
        self._process = os.getpid()
        self._temporary = target.with_name(f".{target.name}.{os.getpid()}.{next(_outputs)}")
        self._file = self._temporary.open("wb")

    def write(self, trace: Trace) -> None:
        """All of the trace, under its name. Raises OSError."""
        trace.write(self._file.write)
        self._file.close()
        self._temporary.replace(self._target)

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what is buffered still may fail again
            self._file.close()
        if os.getpid() == self._process:
            self._temporary.unlink(missing_ok=True)


_outputs = itertools.count()
