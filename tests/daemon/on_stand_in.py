"""The daemon on the stand-in for a GPU's driver, which fails where it is told to.

    python on_stand_in.py each DIRECTORY
    python on_stand_in.py command FAIL_AT STATUS SIGNAL_AT SIGNAL [option of gpupool daemon]...

``each`` has servers of one to PAGES pages fail at every page, and says how many did. ``command`` is
``gpupool daemon`` of which the FAIL_ATth page cannot be made, or that has a signal after the
SIGNAL_ATth; 0 is never. It says what is left in the end, and exits as the daemon does.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
from ctypes import CFUNCTYPE, c_bool, c_char_p, c_int, c_uint64
from pathlib import Path

from daemon_bench import PAGE_BYTES
from server_bench import server_of

import gpupool.daemon.budget
from gpupool._core import PagePool
from gpupool.cli import main
from gpupool.errors import DriverError, UsageError

PAGES = 5
OUT_OF_MEMORY, UNKNOWN = 2, 999  # CUresult
_KINDS = "contexts retains pages reservations mappings registrations streams events modules"


class Held(ctypes.Structure):
    """What there is of each; as tests/cpp/standin/standin.h has it, like the next."""

    _fields_ = [(kind, c_uint64) for kind in _KINDS.split()]


class Control(ctypes.Structure):
    _fields_ = [
        ("held", CFUNCTYPE(Held)),
        ("contexts_made", CFUNCTYPE(c_uint64)),
        ("left_behind", CFUNCTYPE(c_uint64)),
        ("calls", CFUNCTYPE(c_uint64, c_char_p)),
        ("fail", CFUNCTYPE(None, c_char_p, c_uint64, c_int, c_bool)),
    ]


def control() -> Control:
    library = ctypes.CDLL("libcuda.so.1")
    library.gpupool_standin_control.restype = ctypes.POINTER(Control)
    found: Control = library.gpupool_standin_control().contents
    return found


class Watched(PagePool):
    """Says how far it has come, and sees that nobody can connect before it has all pages."""

    socket_path: Path
    signal_at = signal = asked = 0

    def create_ahead(self, count: int) -> None:
        assert not self.socket_path.exists()
        super().create_ahead(count)
        Watched.asked = count
        if count == self.signal_at:
            os.kill(os.getpid(), self.signal)


def served(directory: Path, pages: int) -> None:
    """A server that ends as soon as it runs."""
    server = server_of(directory / "daemon.sock", "cuda:1", pages)
    assert control().held().pages == pages
    assert Watched.socket_path.exists()
    server.stop()
    server.run()


def refused(directory: Path, pages: int, nth: int, status: int) -> bool:
    """Whether making the ``nth`` page fails a server; the sentence is about that."""
    control().fail(b"cuMemCreate", nth, status, False)
    try:
        served(directory, pages)
    except UsageError as error:
        assert status == OUT_OF_MEMORY
        assert str(error) == (
            f"cuda:1 has no room for a budget of {pages * PAGE_BYTES} bytes: page_create failed: "
            f"CUDA_ERROR_OUT_OF_MEMORY after {nth - 1} of {pages} pages; give a smaller "
            "--budget-bytes, or end what else uses the GPU"
        )
        return True
    except DriverError as error:
        assert status == UNKNOWN == error.status
        return True
    finally:
        control().fail(None, 0, 0, False)
    return False


def each(directory: Path) -> int:
    """How many were refused; nothing is left of any."""
    Watched.socket_path = directory / "daemon.sock"
    count = 0
    for pages in range(1, PAGES + 1):
        for nth in range(1, pages + 2):
            for status in (OUT_OF_MEMORY, UNKNOWN):
                was_refused = refused(directory, pages, nth, status)
                assert was_refused == (nth <= pages)
                count += was_refused
                gc.collect()
                assert control().held().pages == 0 and control().held().contexts == 0
                assert list(directory.iterdir()) == []
    return count


def command(fail_at: int, status: int, options: list[str]) -> int:
    """The exit status of the daemon."""
    Watched.socket_path = Path(options[options.index("--socket") + 1])
    control().fail(b"cuMemCreate", fail_at, status, False)
    try:
        main(["daemon", *options])
    except SystemExit as ended:
        code = int(ended.code or 0)
    gc.collect()
    calls = control().calls(b"cuMemCreate")
    print(json.dumps({"pages": control().held().pages, "asked": Watched.asked, "calls": calls}))
    return code


if __name__ == "__main__":
    gpupool.daemon.budget.PagePool = Watched  # type: ignore[misc, attr-defined]
    if sys.argv[1] == "each":
        print(each(Path(sys.argv[2])))
    else:
        # Whatever this was started by: a shell has jobs in the background ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        Watched.signal_at, Watched.signal = int(sys.argv[4]), int(sys.argv[5])
        sys.exit(command(int(sys.argv[2]), int(sys.argv[3]), sys.argv[6:]))
