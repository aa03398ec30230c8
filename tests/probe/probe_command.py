"""One run of the probe as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Done:
    """What a run of the probe came to."""

    code: int
    said: str
    report: dict[str, Any]


def probe(*arguments: str, **environment: str) -> Done:
    """With GPUPOOL_STANDIN_... as the environment has them; the report is empty without --json."""
    done = subprocess.run(
        [sys.executable, "benchmarks/probe_gpu.py", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    report = json.loads(done.stdout) if "--json" in arguments and done.stdout else {}
    return Done(done.returncode, done.stderr, report)
