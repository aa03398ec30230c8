"""What can be asked of an engine in a process of `engine_process`: times, swaps, traffic.

Prompts are token ids that differ from request to request, so that none is computed twice.
"""

from __future__ import annotations

import platform
import time
from random import Random
from typing import Any

import torch
import vllm
from vllm import LLM
from vllm.compilation.counter import compilation_counter
from vllm.platforms import current_platform

from benchmarks.engine_traffic import FIRST_ID, Traffic
from gpupool.vllm import compat
from gpupool.vllm.offline import ask_exactly


class HeldEngine:
    """An engine, and its requests."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._engine = llm.llm_engine
        config = self._engine.vllm_config.model_config
        self._vocabulary = int(config.get_vocab_size())
        worker = self._engine.engine_core.engine_core.model_executor.driver_worker.worker
        self._worker = worker
        self._model = getattr(worker, "pool_model", None)
        # A pooled worker shows it to nobody from outside.
        self._runner = type(worker.model_runner if self._model is None else worker._pool_runner)
        self._random = Random(0)
        self._names = 0
        self._traffic: Traffic | None = None
        self._live: dict[str, list[int]] = {}
        self._answers: dict[str, list[int]] = {}

    def facts(self) -> dict[str, Any]:
        """What it is, and how often it has come in."""
        on_cpu = current_platform.is_cpu()
        return {
            "device_name": "host" if on_cpu else str(current_platform.get_device_name(0)),
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "model_runner": f"{self._runner.__module__}.{self._runner.__name__}",
            "footprint_bytes": self._model.footprint_bytes if self._model else 0,
            "swap_ins": self._model.swap_ins if self._model else 0,
            "graphs_captured": compilation_counter.num_cudagraph_captured,
        }

    def torch_bytes(self) -> int:
        """What torch has of the GPU, outside the pool if there is one, and does not only cache."""
        if self._model is None:
            return compat.torch_bytes(self._worker.device)
        return int(self._worker._pool_torch_bytes())

    # Times, in seconds.

    def first_token(self, prompt_tokens: int) -> float:
        """From the asking until the first token of an answer, which has no other."""
        self._ask(self._prompt(prompt_tokens), 1)
        begun_s = time.perf_counter()
        while not self._step():
            pass
        took_s = time.perf_counter() - begun_s
        self._settle()
        return took_s

    def begin_answers(self, count: int, prompt_tokens: int, answer_tokens: int) -> None:
        """Ask so often, and go on until all have their first token."""
        names = {self._ask(self._prompt(prompt_tokens), answer_tokens) for _ in range(count)}
        begun: set[str] = set()
        while begun < names:
            begun.update(self._step())

    def steps(self, count: int) -> float:
        """So many steps of what was begun, each."""
        begun_s = time.perf_counter()
        for _ in range(count):
            self._step()
        return (time.perf_counter() - begun_s) / count

    def end_answers(self) -> None:
        """Give up what was begun."""
        self._engine.abort_request(list(self._live))
        self._live.clear()
        self._settle()

    def sleep(self) -> float:
        """By vLLM's own sleep mode, level 1: the weights go to the host."""
        begun_s = time.perf_counter()
        self._llm.sleep(level=1)
        return time.perf_counter() - begun_s

    def wake_up(self) -> float:
        """After ``sleep``."""
        begun_s = time.perf_counter()
        self._llm.wake_up()
        return time.perf_counter() - begun_s

    def prefetch(self) -> float:
        """Bring the model of a pooled engine in before it is used."""
        begun_s = time.perf_counter()
        assert self._model is not None
        if not self._model.prefetch():
            raise RuntimeError("a model was to be prefetched that is in")
        return time.perf_counter() - begun_s

    def swaps(self) -> dict[str, dict[str, float]]:
        """What the latest swap-in and swap-out of a pooled engine took and moved."""
        assert self._model is not None
        reports = {"in": self._model.last_swap_in, "out": self._model.last_swap_out}
        keys = ("total_s", "map_s", "copy_s", "copied_bytes")
        return {
            way: {key: getattr(report, key) for key in keys}
            for way, report in reports.items()
            if report is not None
        }

    # Traffic that depends on a seed and the engine's own steps alone, whoever runs between them.

    def begin_traffic(self, seed: str) -> None:
        """From now on ``turn`` has requests."""
        self._traffic = Traffic(seed, self._vocabulary)

    def turn(self, steps: int, more: bool) -> dict[str, Any]:
        """So many steps; without ``more`` no new requests come, and it ends with the last."""
        assert self._traffic is not None
        before = self._model.swap_ins if self._model else 0
        inside = sum(len(tokens) > 0 for tokens in self._live.values())
        for _ in range(steps):
            while more and (asked := self._traffic.next(len(self._live))) is not None:
                self._ask(asked.prompt, asked.answer_tokens)
            if not self._live:
                self._settle()
                break
            self._step()
        swapped = self._model is not None and self._model.swap_ins > before
        report = self._model.last_swap_in if swapped and self._model else None
        return {
            "busy": bool(self._live),
            "swap_ins": self._model.swap_ins - before if self._model else 0,
            "begun_answers": inside,
            "swap_in_s": report.total_s if report else 0.0,
            "copied_bytes": report.copied_bytes if report else 0,
        }

    def answers(self) -> dict[str, list[int]]:
        """All that were finished."""
        return self._answers

    def leave(self) -> None:
        """Leave the pool; nothing can be asked any more."""
        if self._model is not None:
            self._model.close()

    def _prompt(self, tokens: int) -> list[int]:
        return [self._random.randrange(FIRST_ID, self._vocabulary) for _ in range(tokens)]

    def _ask(self, prompt: list[int], answer_tokens: int) -> str:
        self._names += 1
        name = f"{self._names}"
        ask_exactly(self._engine, name, prompt, answer_tokens)
        self._live[name] = []
        return name

    def _step(self) -> list[str]:
        """Who has a token more."""
        found = []
        for output in self._engine.step():
            name, tokens = output.request_id, output.outputs[0].token_ids
            if name not in self._live:
                continue  # given up
            self._live[name] += tokens
            if tokens:
                found.append(name)
            if output.finished:
                self._answers[name] = self._live.pop(name)
        return found

    def _settle(self) -> None:
        """The worker hears in one more step that nobody asks it anything, and may be let go."""
        while self._engine.has_unfinished_requests():
            self._engine.step()
        self._engine.step()
