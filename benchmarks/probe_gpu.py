"""Asks a GPU's driver what cuda.h leaves open. Needs Python and libcuda.so.1, and no build.

    python benchmarks/probe_gpu.py                          all parts, under three minutes
    python benchmarks/probe_gpu.py --json probe.json        the figures too; - is stdout
    python benchmarks/probe_gpu.py --parts device,overlap   some parts alone

The file of figures is written after each part, whole, with "complete": false until the last.

Every part runs in a process of its own with a limit of time, so that one that crashes or hangs
leaves "failed: ..." and the others their answers. Parts with two processes start the second
themselves. Exits with 0 if no part failed, 1 if one did, 2 where there is no driver or no device.

Words: "keep" is the part of a rate that is left beside other work, 1.0 being all of it. A "gap" is
how long a kernel that reads memory all the time was held up at most. "waited_for" says that a call
came back only when the work beside it had ended. "context_..." says whether the process had the
device's primary context then: those of `no_context` that make pages and hand them on, as gpupool's
daemon does, should never have it. Figures have the cost of a call from Python in them, which the
part `device` measures (memory_info_call_us). Nothing is left behind, no setting of the device is
changed; `overlap_mps` starts an MPS daemon of its own, and ends it.

On a machine without a GPU, --library takes the stand-in driver of tests/cpp (--mib 64 will do):
what it answers says nothing about a GPU, and the report says that.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import figures_file
from gpu_probe.device import MIB, Settings
from gpu_probe.driver import Driver, MissingError
from gpu_probe.parts import PARTS
from gpu_probe.report import readable
from gpu_probe.runner import FAILED, answer_here, run_parts

SCRIPT = Path(__file__).resolve()


def main() -> int:
    """Ask, and print what was answered."""
    options = _options()
    if options.run_part is not None:
        order = json.loads(options.run_part)
        settings = Settings(**order["settings"])
        answer_here(order["part"], settings, Path(order["into"]), order["asked_by"])
        return 0
    try:
        driver = Driver(options.driver)
        driver("cuInit", 0)
        driver("cuDeviceGet", ctypes.byref(ctypes.c_int()), options.ordinal)
    except (MissingError, RuntimeError) as error:
        print(f"there is no GPU to ask: {error}", file=sys.stderr)
        return 2
    settings = Settings(options.driver, options.mib * MIB, options.seconds, options.ordinal)
    said = sys.stderr if options.json == "-" else sys.stdout
    about: dict[str, Any] = {
        "is_gpu": not driver.is_stand_in,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": options.commit or _commit(),
        "library": options.driver,
        "mib": options.mib,
        "seconds": options.seconds,
    }

    def say(line: str) -> None:
        print(line, file=said, flush=True)

    def keep(outcomes: dict[str, Any], complete: bool = False) -> dict[str, Any]:
        return figures_file.keep(options.json, {**about, "parts": outcomes}, complete=complete)

    report = keep(run_parts(options.parts, SCRIPT, settings, options.limit_s, say, keep), True)
    say(readable(report))
    if options.json == "-":
        print(json.dumps(report, indent=1))
    return int(any(outcome["status"] == FAILED for outcome in report["parts"].values()))


def _commit() -> str:
    command = ["git", "-C", str(SCRIPT.parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _parts(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(
                f"there is no part {name!r}; take of {', '.join(PARTS)}"
            )
    return names


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def _mib(text: str) -> int:
    value = int(text)
    if value < 64 or value & (value - 1):
        raise argparse.ArgumentTypeError(f"{text} is not a power of two of 64 or more")
    return value


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {p.name:13} {p.question}" for p in PARTS.values()),
    )
    add = parser.add_argument
    add("--parts", type=_parts, default=list(PARTS), help="names, with commas between; else all")
    add("--json", help="write the figures there; - is stdout, the summary then goes to stderr")
    add("--library", dest="driver", default="libcuda.so.1", help="the CUDA driver (%(default)s)")
    add("--commit", help="what to call the sources, where the tree has no git")
    add("--ordinal", type=int, default=0, help="which device (%(default)s)")
    add("--mib", type=_mib, default=1024, help="how much a part may map or pin (%(default)s)")
    add("--seconds", type=_positive, default=0.7, help="how long a rate is measured (%(default)s)")
    add("--limit-s", type=_positive, default=170.0, help="for all parts together (%(default)s)")
    add("--run-part", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
