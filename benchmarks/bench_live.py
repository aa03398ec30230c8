"""Requests of three models through a real `gpupool serve` on ordinary memory, by several policies.

    python benchmarks/bench_live.py [--policies turns,deadlines] [--json -]

Each policy serves the same trace with engines of its own: stock vLLM servers with the demo's tiny
models, in a pool that holds one of them. What a policy of requests decided is recorded and decided
again from the recording. The simulator runs the same trace by a profile of this machine, which is
measured first (`gpupool profile`). See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.live_server import Answered, LiveRun, checkpoints, serve_trace  # noqa: E402
from demo.pool import (  # noqa: E402
    BUDGET_BYTES,
    ENGINE_ENVIRONMENT,
    KV_CACHE_BYTES,
    MAX_MODEL_LEN,
    MIB,
    PAGE_BYTES,
    ServerError,
)
from demo.questions import demo_requests  # noqa: E402
from gpupool.live import POLICIES  # noqa: E402
from gpupool.schedule.recording import differing, from_line  # noqa: E402
from gpupool.simulate.assumptions import HONEST  # noqa: E402
from gpupool.simulate.profile_file import read_profiles  # noqa: E402
from gpupool.simulate.result import quantile  # noqa: E402
from gpupool.simulate.simulation import Hardware, simulate  # noqa: E402
from gpupool.simulate.trace import Arrival  # noqa: E402

GPU = "this machine"


@dataclass
class Row:
    """How one policy did."""

    policy: str
    requests: int
    ttft_s_p50: float
    ttft_s_p99: float
    gap_s_p99: float
    """Between two tokens of an answer."""
    attainment_tokens: float
    swap_ins: int
    swap_in_s_median: float
    duration_s: float
    decisions: int = 0
    decisions_differing: int = 0
    simulated: Simulated | None = None


@dataclass
class Simulated:
    """What the simulator says of the same trace."""

    ttft_s_p50: float
    ttft_s_p99: float
    attainment_tokens: float
    switches: int


def main() -> int:
    """Run it; the exit status is 1 if a decision came out otherwise the second time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--policies", default="turns,deadlines", help="turns, deadlines, fcfs")
    parser.add_argument("--workload", choices=("poisson", "demo"), default="poisson")
    parser.add_argument("--rate", type=float, default=0.5, help="requests/s of each model")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ttft-ms", type=float, default=2000.0, help="goal for a first token")
    parser.add_argument("--tbt-ms", type=float, default=100.0, help="goal for each further one")
    parser.add_argument("--turn-ms", type=int, default=200, help="of the policy turns")
    parser.add_argument("--profiles", type=Path, help="of this machine; else they are measured")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/demo")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/bench_live")
    parser.add_argument("--json", metavar="PATH", help="- for standard output")
    arguments = parser.parse_args()
    models = checkpoints(arguments.cache)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    profiles = arguments.profiles or measure(models, arguments.folder / "profiles.csv")
    if arguments.workload == "demo":
        trace = demo_trace()
    else:
        trace = make_trace(sorted(models), arguments.rate, arguments.seconds, arguments.seed)
    rows = []
    for policy in arguments.policies.split(","):
        print(f"{policy}: starting the engines", file=sys.stderr)
        try:
            rows.append(_row(policy, trace, models, arguments))
            if policy in POLICIES:
                rows[-1].simulated = simulated(policy, trace, profiles, arguments)
        except ServerError as error:
            parser.exit(1, f"{policy}: {error}\n")
    text = _table(rows)
    print(text, file=sys.stderr if arguments.json == "-" else sys.stdout)
    if arguments.json:
        given = {k: v for k, v in vars(arguments).items() if isinstance(v, str | int | float)}
        found = {"arguments": given, "rows": [asdict(row) for row in rows]}
        written = json.dumps(found, indent=1) + "\n"
        if arguments.json == "-":
            sys.stdout.write(written)
        else:
            Path(arguments.json).write_text(written)
    return int(any(row.decisions_differing for row in rows))


def make_trace(models: list[str], rate: float, seconds: float, seed: int) -> list[Arrival]:
    """Poisson arrivals with prompts of 16 to 256 tokens and answers of 16 to 160."""
    rng = random.Random(seed)
    found = []
    for model in models:
        at_s = rng.expovariate(rate)
        while at_s < seconds:
            found.append(Arrival(at_s, model, rng.randint(16, 256), rng.randint(16, 160)))
            at_s += rng.expovariate(rate)
    return sorted(found)


def demo_trace() -> list[Arrival]:
    """The demo's chats, all at once but for a millisecond between them."""
    chats = [(model, chat) for model, listed in demo_requests().items() for chat in listed]
    return [
        Arrival(number / 1000, model, 32, chat.max_tokens)
        for number, (model, chat) in enumerate(chats)
    ]


def measure(models: Mapping[str, Path], path: Path) -> Path:
    """What these models take on this machine, served as they will be. Raises CalledProcessError."""
    for name, checkpoint in models.items():
        print(f"{name}: measuring its profile", file=sys.stderr)
        subprocess.run(
            [
                *(sys.executable, "-m", "gpupool", "profile", str(checkpoint)),
                *("--name", name, "--device", "host", "--gpu", GPU, "--output", str(path)),
                *("--kv-cache", f"{KV_CACHE_BYTES // MIB}MiB", "--page", f"{PAGE_BYTES // MIB}MiB"),
                *("--input-tokens", "16,64,256", "--batch-sizes", "1,2,4,8"),
                *("--prompt-tokens-max", "1024"),
                *("--", "--dtype", "float32", "--enforce-eager"),
                *("--max-model-len", str(MAX_MODEL_LEN)),
            ],
            env={**os.environ, **ENGINE_ENVIRONMENT},
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return path


def simulated(
    policy: str, trace: list[Arrival], path: Path, arguments: argparse.Namespace
) -> Simulated:
    """The trace on one device with the pool's budget, by the profile."""
    profiles = read_profiles(path)
    result = simulate(
        trace,
        policy,
        Hardware(devices=1, gpu=GPU, device_bytes=BUDGET_BYTES / HONEST.memory_share),
        fits=profiles.fits,
        checkpoints=profiles.checkpoints_of(trace, GPU),
        ttft_s=arguments.ttft_ms / 1000,
        tbt_s=arguments.tbt_ms / 1000,
    )
    return Simulated(
        result.ttft_s_p50, result.ttft_s_p99, result.attainment_tokens, result.switches
    )


def _row(
    policy: str, trace: list[Arrival], models: Mapping[str, Path], arguments: argparse.Namespace
) -> Row:
    folder = arguments.folder / policy
    folder.mkdir(parents=True, exist_ok=True)
    goals_ms = arguments.ttft_ms, arguments.tbt_ms
    run = asyncio.run(
        serve_trace(
            trace,
            policy,
            models,
            folder,
            goals_ms=goals_ms,
            turn_ms=arguments.turn_ms,
            on_progress=_Changes(),
        )
    )
    row = _figures(policy, run, arguments.ttft_ms / 1000, arguments.tbt_ms / 1000)
    if policy in POLICIES:
        with (folder / "decisions.jsonl").open() as lines:
            recording = [from_line(line)[1] for line in lines]
        row.decisions = len(recording)
        row.decisions_differing = sum(1 for _ in differing(recording, POLICIES[policy]))
    return row


class _Changes:
    """Says what is new, a line each."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, line: str) -> None:
        if (engine := line.partition(" (")[0]) != self._last:
            print(f"  {engine[:100]}", file=sys.stderr)
            self._last = engine


def _figures(policy: str, run: LiveRun, ttft_s: float, tbt_s: float) -> Row:
    firsts = sorted(a.tokens_s[0] - a.arrival.at_s for a in run.answers)
    gaps = [b - a for found in run.answers for a, b in pairwise(found.tokens_s)]
    swaps = [took_s for of_model in run.swap_in_s.values() for took_s in of_model]
    return Row(
        policy,
        len(run.answers),
        statistics.median(firsts),
        quantile(firsts, 0.99),
        quantile(sorted(gaps), 0.99),
        _attainment(run.answers, ttft_s, tbt_s),
        run.swap_ins,
        statistics.median(swaps) if swaps else 0.0,
        max(a.tokens_s[-1] for a in run.answers),
    )


def _attainment(answers: list[Answered], ttft_s: float, tbt_s: float) -> float:
    """The share of tokens that came in time, as `gpupool simulate` counts them."""
    tokens = in_time = 0
    for answered in answers:
        due_s = answered.arrival.at_s + ttft_s
        tokens += answered.arrival.output_tokens
        in_time += sum(at_s <= due_s + k * tbt_s for k, at_s in enumerate(answered.tokens_s))
    return in_time / tokens


def _table(rows: list[Row]) -> str:
    lines = ["policy       TTFT p50   p99  in time  swap-ins  (median)  decisions differing"]
    for r in rows:
        lines.append(
            f"{r.policy:<12} {r.ttft_s_p50:8.2f} {r.ttft_s_p99:5.2f} {r.attainment_tokens:8.1%} "
            f"{r.swap_ins:9} {r.swap_in_s_median * 1000:6.1f} ms {r.decisions:10} "
            f"{r.decisions_differing:9}"
        )
        if (s := r.simulated) is not None:
            lines.append(
                f"  simulated  {s.ttft_s_p50:8.2f} {s.ttft_s_p99:5.2f} {s.attainment_tokens:8.1%} "
                f"{s.switches:9}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
