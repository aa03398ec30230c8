"""The parts in turn, one report of them all, and the same for people."""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpupool.check.parts import Part
from gpupool.check.running import FAILED, PASSED, SKIPPED, Outcome, Runner

REPORT = "report.json"
NOT_A_GPU = "NOT A GPU: the driver is the stand-in of the tests, and nothing here is of a GPU."
LEFT_LINES = 12  # of the output of a part that failed


def check(
    parts: Iterable[Part],
    is_gpu: bool,
    machine: dict[str, str],
    tree: Path,
    out: Path,
    run: Runner,
    say: Callable[[str], None],
    limit_s: float = math.inf,
) -> dict[str, Any]:
    """Run them, and have the report in its file after each, for who is cut off.

    All together take ``limit_s`` at most: what is running then fails, and the rest is skipped.
    """
    ends_s = time.monotonic() + limit_s
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "is_gpu": is_gpu,
        "machine": machine,
        "parts": {},
    }
    for part in parts:
        left_s = ends_s - time.monotonic()
        if part.skip:
            outcome = Outcome(SKIPPED, part.skip)
        elif left_s < 1:
            outcome = Outcome(SKIPPED, f"the {limit_s:.0f} s for all are over: ask for it by name")
        else:
            limited = replace(part, limit_s=min(part.limit_s, left_s))
            outcome = run(limited, tree, out / f"{part.name}.log")
        report["parts"][part.name] = {"what": part.what} | asdict(outcome)
        say(_line(part.name, outcome))
        (out / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    return report


def exit_status(report: dict[str, Any], by_name: bool) -> int:
    """1 if a part failed; 3 if one was asked for ``by_name`` and skipped, or nothing was run."""
    statuses = {part["status"] for part in report["parts"].values()}
    if FAILED in statuses:
        return 1
    return 3 if PASSED not in statuses or (by_name and SKIPPED in statuses) else 0


def readable(report: dict[str, Any], out: Path) -> str:
    """What was run where, what came of it, and the end of what failed."""
    warning = [] if report["is_gpu"] else [NOT_A_GPU]
    lines = [*warning, f"gpupool checked, {report['date']}"]
    lines += [f"  {name}: {value}" for name, value in report["machine"].items()]
    for name, part in report["parts"].items():
        if part["status"] == FAILED:
            lines += ["", f"== {name} ({part['what']}) failed; the end of {out / name}.log:"]
            lines += [f"  {line}" for line in part["said"].splitlines()[-LEFT_LINES:]]
    lines.append("")
    for name, part in report["parts"].items():
        lines.append(_line(name, Outcome(part["status"], part["why"], part["took_s"])))
    counts = dict.fromkeys((PASSED, FAILED, SKIPPED), 0)
    for part in report["parts"].values():
        counts[part["status"]] += 1
    lines.append(", ".join(f"{count} {status}" for status, count in counts.items()))
    lines.append(f"the report is {out / REPORT}")
    return "\n".join([*lines, *warning])


def _line(name: str, outcome: Outcome) -> str:
    took = f" in {outcome.took_s:.0f} s" if outcome.status != SKIPPED else ""
    return f"{name:12} {outcome.status}{took}{': ' + outcome.why if outcome.why else ''}"
