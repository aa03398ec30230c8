"""Engines that take turns in a pool that holds one, at random token boundaries.

    python tests/gpu/vllm_swaps.py --device cuda --engines 3 --parameters 1.5e9 --swaps 500 --json -

Every engine answers the same requests twice: as a stock engine of vLLM, undisturbed, and in the
pool, where another one comes in after every few of its steps. Which, and after how many, is drawn
from --seed; what an engine is asked depends on the seed and its own steps alone. Tokens are greedy,
and must be equal. With CUDA graphs, those captured by the end of the start must be all that ever
were. Exits with 1 where that is not so, or there were fewer swaps than asked for.

Keys: swaps (swap-ins after the start), swaps_inside_answers (of engines with answers that had begun
and were not done), requests, tokens, differing (requests), first_difference, graphs_captured (by
the end of the start, of each process) and graphs_captured_later, swap_in_ms (median and largest),
copied_bytes (of all swap-ins), wrong (why the exit status is 1). The file is written every twenty
turns too, with complete: false and the swaps so far: answers are compared when all are there.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import click  # noqa: E402

from benchmarks.engine_process import EngineError, EngineProcess, EngineSpec  # noqa: E402
from benchmarks.engine_setup import NO_TURNS, VERSIONS, engine_options, set_up  # noqa: E402
from benchmarks.engine_traffic import CONTEXT_TOKENS  # noqa: E402
from benchmarks.figures_file import keep  # noqa: E402
from benchmarks.pool_process import daemon  # noqa: E402
from benchmarks.swap_plan import STEPS, differences, swapped, turns, wrong  # noqa: E402
from gpupool.errors import GpupoolError  # noqa: E402

FOR_GOOD = 1 << 30
KEEP_EVERY = 20  # turns


@dataclass(frozen=True)
class Held:
    """An engine, in a process with others or alone."""

    process: EngineProcess
    index: int

    def ask(self, what: str, *arguments: Any) -> Any:
        """What it says."""
        return self.process.ask(what, self.index, *arguments)


class Run:
    """One kind of engines, stock or pooled, with the same requests as the other."""

    def __init__(self, kind: str, given: dict[str, Any], folder: Path, stack: ExitStack) -> None:
        """Their processes, which import vLLM meanwhile, and which the stack ends."""
        self._kind, self._count, self._seed = kind, given["engines"], given["seed"]
        self._together = given["together"]
        self.processes: list[EngineProcess] = []
        for index in range(1 if self._together else self._count):
            log = folder / f"{kind}{index}.log"
            process = EngineProcess(given["device"], log, given["runner"])
            self.processes.append(stack.enter_context(process))
        self.engines = [
            Held(self.processes[0 if self._together else number], number if self._together else 0)
            for number in range(self._count)
        ]
        self.captured: list[int] = []

    def start(self, specs: list[EngineSpec], *, at_once: bool) -> None:
        """All engines, one after the other unless they are processes that start at once."""
        for number, (engine, spec) in enumerate(zip(self.engines, specs, strict=True)):
            say(f"{self._kind}: starting engine {number}")
            engine.process.send("start", spec)
            if not at_once:
                engine.process.receive()
        if at_once:
            self._receive()
        for number, engine in enumerate(self.engines):
            engine.ask("begin_traffic", f"{self._seed}/{number}")
        self.captured = self.graphs()

    def undisturbed(self, plan: list[tuple[int, int]]) -> dict[str, list[int]]:
        """What engines answer each of which has all its steps at once; they end."""
        for number, engine in enumerate(self.engines):
            steps = sum(steps for index, steps in plan if index == number)
            engine.process.send("turn", engine.index, steps, True)
        self._receive()
        for engine in self.engines:
            engine.process.send("turn", engine.index, FOR_GOOD, False)
        self._receive()
        answers = self.answers()
        for process in self.processes:
            process.end()
        return answers

    def _receive(self) -> None:
        for engine in self.engines:
            engine.process.receive()

    def graphs(self) -> list[int]:
        """How many were captured so far, in each process."""
        return [process.ask("facts", 0)["graphs_captured"] for process in self.processes]

    def answers(self) -> dict[str, list[int]]:
        """Of all engines."""
        return {
            f"{number}/{name}": tokens
            for number, engine in enumerate(self.engines)
            for name, tokens in engine.ask("answers").items()
        }


def taking_turns(run: Run, plan: list[tuple[int, int]], seed: int) -> Iterator[dict[str, Any]]:
    """The same of pooled engines, in turn; what each turn came to."""
    for done, (index, steps) in enumerate(plan):
        if done % KEEP_EVERY == 0:
            say(f"turn {done} of {len(plan)}")
        yield run.engines[index].ask("turn", steps, True)
    random, busy = Random(seed + 1), list(run.engines)
    while busy:
        engine = random.choice(busy)
        turn = engine.ask("turn", random.choice(STEPS), False)
        if not turn["busy"]:
            busy.remove(engine)
        yield turn


def in_pool(stock: list[EngineSpec], pool: dict[str, Any]) -> list[EngineSpec]:
    """The same engines in a pool."""
    return [
        replace(spec, pool=pool | {"model": f"m{number}", "verify": "always"})
        for number, spec in enumerate(stock)
    ]


def compare(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """All of it. Raises UsageError, EngineError, GpupoolError, RuntimeError, OSError."""
    setup = set_up(
        given, prefix_caching=True, context_tokens=CONTEXT_TOKENS, step_tokens=CONTEXT_TOKENS
    )
    together = given["together"]
    plan = turns(given["seed"], given["engines"], given["swaps"])
    begun_s = time.monotonic()
    with ExitStack() as stack:
        if together:
            pool = {"device": given["device"], "budget_bytes": setup.budget_bytes}
            pool["page_bytes"] = setup.page_bytes
        else:
            room = setup.budget_bytes, setup.page_bytes
            process = stack.enter_context(daemon(given["device"], *room, *NO_TURNS))
            pool = {"socket": str(process.socket_path)}
        stock = Run("stock", given, folder, stack)
        pooled = Run("pooled", given, folder, stack)
        say(f"writing {given['engines']} checkpoints")
        specs = [setup.written(folder, seed=index + 1) for index in range(given["engines"])]
        stock.start(specs, at_once=not together)
        alone = stock.undisturbed(plan)
        pooled.start(in_pool(specs, pool), at_once=False)
        facts = [engine.ask("facts") for engine in pooled.engines]
        setup.check_holds_one([each["footprint_bytes"] for each in facts])
        of_all = setup.facts() | {key: given[key] for key in ("engines", "together", "seed")}
        of_all |= {key: facts[0][key] for key in VERSIONS} | {"graphs_captured": pooled.captured}
        took: list[dict[str, Any]] = []
        for turn in taking_turns(pooled, plan, given["seed"]):
            took.append(turn)
            if len(took) % KEEP_EVERY == 0:
                keep(given["json_path"], of_all | swapped(took), complete=False)
        answers, captured = pooled.answers(), pooled.graphs()
    found = of_all | differences(alone, answers) | swapped(took)
    found["graphs_captured_later"] = sum(captured) - sum(pooled.captured)
    found["took_s"] = round(time.monotonic() - begun_s, 1)
    found["wrong"] = wrong(found, given["swaps"])
    return found


def say(line: str) -> None:
    """How far it is."""
    print(line, file=sys.stderr, flush=True)


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@engine_options
@click.option("--engines", default=3, show_default=True, type=click.IntRange(2, 16))
@click.option("--swaps", default=500, show_default=True, type=click.IntRange(1), help="At least.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--together/--apart",
    help="All engines in one process and an embedded pool, or each in its own and a daemon's.  "
    "[default: apart]",
)
def main(**given: Any) -> None:
    """Run and report."""
    with tempfile.TemporaryDirectory(prefix="gpupool-swaps-") as passing:
        folder = given["folder"] or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = compare(given, folder)
        except (EngineError, GpupoolError, RuntimeError, OSError) as error:
            raise click.ClickException(str(error)) from error
    found = keep(given["json_path"], found, complete=True)
    print(json.dumps(found, indent=1))
    for fault in found["wrong"]:
        say(f"WRONG: {fault}")
    sys.exit(int(bool(found["wrong"])))


if __name__ == "__main__":
    main()
