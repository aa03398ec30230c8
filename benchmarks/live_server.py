"""``gpupool serve`` with tiny models on ordinary memory, and requests put to it as a trace says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from demo.checkpoints import DEMO_SPECS, cached_checkpoint
from demo.pool import PoolServer, pool_config
from gpupool.simulate.trace import Arrival

READY_TIMEOUT_S = 600.0
ANSWER_TIMEOUT_S = 300.0
WORD_TOKENS = 100  # of the demo's tokenizer: ids that every model knows are above that


@dataclass
class Answered:
    """A request of a trace and when its tokens came, in seconds from the trace's begin."""

    arrival: Arrival
    sent_s: float = 0.0
    tokens_s: list[float] = field(default_factory=list)


@dataclass
class LiveRun:
    """What one policy did with a trace."""

    answers: list[Answered]
    swap_ins: int
    swap_in_s: dict[str, list[float]]


def checkpoints(cache: Path) -> dict[str, Path]:
    """The demo's models, made when they are missing."""
    return {name: cached_checkpoint(cache, spec) for name, spec in DEMO_SPECS.items()}


async def serve_trace(
    trace: Sequence[Arrival],
    policy: str,
    models: Mapping[str, Path],
    folder: Path,
    *,
    goals_ms: tuple[float, float],
    turn_ms: int,
    on_progress: Callable[[str], None],
) -> LiveRun:
    """Serve a trace under a live policy, whose decisions go to ``folder/decisions.jsonl``.

    Raises ServerError.
    """
    config = pool_config(dict(models))
    config["pool"] |= {"policy": policy, "turn_ms": turn_ms}
    if policy != "turns":
        ttft_ms, tbt_ms = goals_ms
        record = str(folder / "decisions.jsonl")
        config["pool"] |= {"ttft_ms": ttft_ms, "tbt_ms": tbt_ms, "record": record}
    async with (
        PoolServer(config, folder) as server,
        httpx.AsyncClient(
            timeout=ANSWER_TIMEOUT_S, limits=httpx.Limits(max_connections=None)
        ) as client,
    ):
        await server.until_ready(on_progress, READY_TIMEOUT_S)
        for name in models:  # each once, so that nothing is a first time
            await _ask(client, server.url, Answered(Arrival(0.0, name, 32, 4)), 0.0)
        before = await server.status(client)
        answers = [Answered(arrival) for arrival in trace]
        begun_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for answered in answers:
                tasks.create_task(_come(client, server.url, answered, begun_s))
        after = await server.status(client)
    return LiveRun(answers, _swap_ins(after) - _swap_ins(before), _swap_in_s(before, after))


async def _come(client: httpx.AsyncClient, url: str, answered: Answered, begun_s: float) -> None:
    await asyncio.sleep(max(0.0, begun_s + answered.arrival.at_s - time.monotonic()))
    await _ask(client, url, answered, begun_s)


async def _ask(client: httpx.AsyncClient, url: str, answered: Answered, begun_s: float) -> None:
    arrival = answered.arrival
    # Prompts that differ from the first token on, so that no prefix cache has them.
    first = WORD_TOKENS + int(arrival.at_s * 1000) % 100
    body = {
        "model": arrival.model,
        "prompt": [first, *(WORD_TOKENS + n % 100 for n in range(arrival.input_tokens - 1))],
        "max_tokens": arrival.output_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "return_token_ids": True,
    }
    answered.sent_s = time.monotonic() - begun_s
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event: dict[str, Any] = msgspec.json.decode(line.removeprefix("data: "))
            now_s = time.monotonic() - begun_s
            for choice in event.get("choices", ()):
                answered.tokens_s += [now_s] * len(choice.get("token_ids") or ())


def _swap_ins(status: dict[str, Any]) -> int:
    return sum(model["swap_ins"] for model in status["daemon"]["models"])


def _swap_in_s(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[float]]:
    skipped = {model["name"]: model["swap_ins"] for model in before["daemon"]["models"]}
    return {
        model["name"]: model["swap_in_s"][-(model["swap_ins"] - skipped[model["name"]]) :]
        if model["swap_ins"] > skipped[model["name"]]
        else []
        for model in after["daemon"]["models"]
    }
