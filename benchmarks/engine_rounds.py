"""What `bench_engine.py` measures: engines that are started, and rounds with all of them."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.device_memory import device_memory
from benchmarks.engine_memory import EngineMemory
from benchmarks.engine_process import EngineProcess
from benchmarks.engine_setup import Setup
from benchmarks.plain_copies import plain_copies

BLOCKS = 6  # of decode steps of each engine in a round
PLAIN_BYTES_MAX = 4 << 30


def say(line: str) -> None:
    """How far it is."""
    print(line, file=sys.stderr, flush=True)


@dataclass
class Engines:
    """The processes that are there while rounds are taken, each with one engine."""

    stock: EngineProcess
    a: EngineProcess
    b: EngineProcess
    sleeper: EngineProcess | None = None


class Bench:
    """Everything of one run: times by what they are of, in seconds."""

    def __init__(self, setup: Setup, folder: Path, given: dict[str, Any]) -> None:
        self.setup, self.folder = setup, folder
        self.given = given
        self.taken: defaultdict[str, list[float]] = defaultdict(list)
        self.left_out: dict[str, str] = {}
        self.footprint_bytes = self.copied_bytes = self.clean_bytes = 0
        self.facts: dict[str, Any] = {}
        self._spec = setup.written(folder, seed=1)
        self._prompt_tokens = given["prompt_tokens"]
        source = torch.empty(min(setup.weights_bytes, PLAIN_BYTES_MAX) // 8, dtype=torch.int64)
        torch.arange(len(source), out=source)
        self.plain_bytes = source.nbytes
        self._plain = plain_copies(setup.spec.device, source.view(torch.uint8))
        self.memory = EngineMemory(device_memory(setup.spec.device))
        if setup.spec.device == "host":
            self.left_out["device_memory_mib"] = (
                "on the host it is memory of the engines' processes"
            )

    def start(self, kind: str, engine: EngineProcess, socket: Path | None) -> EngineProcess:
        """Its engine, until its first token; pooled ones get the name of their log."""
        say(f"starting {engine.name} ({kind.replace('_', ' ')})")
        spec = replace(self._spec, sleep_mode=kind == "sleeper")
        if socket is not None:
            cache = str(self.folder / "images")
            pool = {"socket": str(socket), "model": engine.name, "image_cache": cache}
            spec = replace(spec, pool=pool)
        if kind in ("pooled_from_image", "image_written"):
            spec = replace(spec, load_format="gpupool")
        self.memory.begin()
        self.facts = engine.ask("start", spec)
        if socket is not None:
            self.footprint_bytes = self.facts["footprint_bytes"]
            self.setup.check_holds_one([self.footprint_bytes])
        engine.ask("first_token", 0, self._prompt_tokens)
        took_s = time.perf_counter() - engine.begun_s
        if kind != "pooled_from_image" or "gpupool: image hit" in engine.log:
            self.taken[f"start {kind}"].append(took_s)
            self.memory.take(kind, engine)
        else:
            why = [
                line for line in engine.log.splitlines() if "gpupool: " in line and " image" in line
            ]
            self.left_out["cold_start_s.pooled_from_image"] = why[-1] if why else "no image"
        return engine

    def process(self, name: str) -> EngineProcess:
        """A new one."""
        log = self.folder / f"{name}.log"
        return EngineProcess(self.setup.spec.device, log, self.given["runner"])

    def first_starts(self, socket: Path) -> None:
        """Of each kind one that counts for nothing; says what room an engine takes."""
        for kind in ("stock", "image_written"):
            with self.process(f"first-{kind}") as first:
                self.start(kind, first, None if kind == "stock" else socket)
        self.taken.clear()
        self.memory.clear()

    def starts(self, socket: Path, stack: ExitStack) -> Engines:
        """Each kind so often as was asked for, of which the last stay."""
        for number in range(self.given["starts"] - 1):
            for kind in ("stock", "pooled", "pooled_from_image"):
                with self.process(f"{kind}-{number}") as passing:
                    self.start(kind, passing, None if kind == "stock" else socket)
        again = "pooled_from_image" if self.given["starts"] > 0 else "pooled"
        kinds = {"stock": "stock", "a": "pooled", "b": again}
        if self.setup.spec.device == "cuda":
            kinds["sleeper"] = "sleeper"
        else:
            self.left_out["sleep_mode"] = "vLLM's build for CPUs has no sleep mode"
        processes = {}
        if self.given["starts"] == 0:  # nobody looks at the time: they import vLLM together
            self.left_out["cold_start_s"] = "--starts 0"
            processes = {name: stack.enter_context(self.process(name)) for name in kinds}
        for name, kind in kinds.items():
            if name not in processes:
                processes[name] = stack.enter_context(self.process(name))
            self.start(kind, processes[name], socket if name in ("a", "b") else None)
        return Engines(**processes)

    def _round(self, engines: Engines) -> None:
        """Each measure once; a is in when it ends."""
        take, prompt = self._take, self._prompt_tokens
        for name, copy in self._plain.items():
            begun_s = time.perf_counter()
            copy()
            take(f"plain {name}", time.perf_counter() - begun_s)
        if engines.sleeper is not None:
            for what in ("sleep", "wake_up"):
                take(what, engines.sleeper.ask(what, 0))
            take("first woken", engines.sleeper.ask("first_token", 0, prompt))
        engines.a.ask("first_token", 0, prompt)  # brings it in, in the first round
        take("first stock", engines.stock.ask("first_token", 0, prompt))
        take("first resident", engines.a.ask("first_token", 0, prompt))
        self._decode(engines)
        take("first swapped", engines.b.ask("first_token", 0, prompt))
        came, went = engines.b.ask("swaps", 0)["in"], engines.a.ask("swaps", 0)["out"]
        self.copied_bytes = came["copied_bytes"]
        for part in ("total_s", "map_s", "copy_s"):
            take(f"in {part}", came[part])
        take("rate", came["copied_bytes"] / came["copy_s"])
        take("out", went["total_s"])
        self.clean_bytes = max(self.clean_bytes, went["copied_bytes"])
        take("prefetch", engines.a.ask("prefetch", 0))
        take("first prefetched", engines.a.ask("first_token", 0, prompt))

    def _decode(self, engines: Engines) -> None:
        block, both = self.given["block_steps"], {"stock": engines.stock, "pooled": engines.a}
        for engine in both.values():
            answer = (BLOCKS + 1) * block + 16
            engine.ask("begin_answers", 0, self.given["batch_size"], self._prompt_tokens, answer)
        for turn in range(BLOCKS + 1):
            order = list(both) if turn % 2 else list(reversed(both))
            took_s = {name: both[name].ask("steps", 0, block) for name in order}
            if turn > 0:  # else the first after another has run
                for name, step_s in took_s.items():
                    self._take(f"step {name}", step_s)
                self._take("step ratio", took_s["pooled"] / took_s["stock"])
        for engine in both.values():
            engine.ask("end_answers", 0)

    def _take(self, what: str, figure: float) -> None:
        self.taken[what].append(figure)

    def rounds(self, engines: Engines) -> Iterator[int]:
        """All of them, after one that counts for nothing; how many have counted so far."""
        starts = {k: v for k, v in self.taken.items() if k.startswith("start ")}
        for number in range(self.given["runs"] + 1):
            say(f"round {number} of {self.given['runs']}")
            if number == 1:
                self.taken.clear()
                self.taken.update(starts)
                self.clean_bytes = 0
            self._round(engines)
            if number > 0:
                yield number
