"""Three models share a pool that holds one of them, and answer as if each were alone.

    python demo/run.py [--json build/demo.json] [--cache .cache/demo] [--keep]

Exits with 1 when an answer differs from the model's own, when too few swaps fell inside answers
or when a swap-in is not much faster than a cold start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if not __package__:  # started as a file: let `import demo` find this folder, and nothing in it
    sys.path[0] = str(ROOT)

import httpx  # noqa: E402
from openai import AsyncOpenAI, OpenAIError  # noqa: E402
from rich.console import Console  # noqa: E402

from demo import figures, pool  # noqa: E402
from demo.chats import ModelRun, chat_with_all  # noqa: E402
from demo.checkpoints import DEMO_SPECS, cached_checkpoint, weights_bytes  # noqa: E402
from demo.figures import Figures  # noqa: E402
from demo.pool import PoolServer, ServerError  # noqa: E402
from demo.questions import Answer, ChatRequest, demo_requests  # noqa: E402
from demo.reference import ReferenceError, reference_answers  # noqa: E402
from demo.report import print_report  # noqa: E402

#: The chats are repeated until enough swaps fell inside answers: a fast machine answers many
#: tokens in a turn.
MAX_ROUNDS = 4
READY_TIMEOUT_S = 600.0
CHAT_TIMEOUT_S = 300.0


def main() -> int:
    """The demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=ROOT / "build/demo.json", metavar="FILE")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/demo", metavar="DIRECTORY")
    parser.add_argument(
        "--keep", action="store_true", help="keep pool.yaml and the server's log after success"
    )
    arguments = parser.parse_args()
    # Where there is no terminal, rich takes 80 columns: too few for the server's log lines.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    directory = arguments.json.resolve().parent / "demo"
    try:
        failures = asyncio.run(_demo(console, arguments.json, arguments.cache, directory))
    except KeyboardInterrupt:
        console.print("interrupted; everything is ended")
        return 130
    except (ReferenceError, ServerError) as error:
        failures = [str(error)]
    for failure in failures:
        console.print(f"FAILED: {failure}", style="red", markup=False)
    if not failures and not arguments.keep:
        shutil.rmtree(directory)
    return 1 if failures else 0


async def _demo(console: Console, json_path: Path, cache: Path, directory: Path) -> list[str]:
    begun_s = time.monotonic()
    checkpoints = _write_checkpoints(console, cache)
    expected = await _run_alone(console, checkpoints, cache)
    server = PoolServer(pool.pool_config(checkpoints), directory)
    async with server, httpx.AsyncClient(timeout=30.0) as client:
        with console.status("starting the engines, one after the other") as line:
            tell = line.update if console.is_terminal else _Changes(console)
            await server.until_ready(tell, READY_TIMEOUT_S)
        console.print(f"all models are served at {server.url}")
        before = await server.status(client)
        if problem := figures.check_budget(before["daemon"]):
            return [problem]
        rounds = await _chat(console, server, client)
        after = await server.status(client)
        memcpy_gbps = {
            model["name"]: figures.measure_memcpy_gbps(model["footprint_bytes"])
            for model in after["daemon"]["models"]
        }
        console.print("ending the server")
    try:
        found = figures.gather(before, after, rounds, expected, memcpy_gbps)
    except ValueError as error:
        return [f"{error}."]
    seconds = time.monotonic() - begun_s
    _write_json(json_path, found, seconds)
    print_report(console, found, pool.TURN_MS, seconds)
    return found.failures()


def _write_checkpoints(console: Console, cache: Path) -> dict[str, Path]:
    checkpoints = {}
    for name, spec in DEMO_SPECS.items():
        checkpoints[name] = cached_checkpoint(cache, spec)
        megabytes = weights_bytes(checkpoints[name]) / 1e6
        console.print(f"checkpoint {name}: {megabytes:.0f} MB of random weights, seed {spec.seed}")
    return checkpoints


async def _run_alone(
    console: Console, checkpoints: dict[str, Path], cache: Path
) -> dict[str, list[Answer]]:
    """Each model's own answers; several at once when there are cores for it."""
    requests = demo_requests()
    loop = asyncio.get_running_loop()
    begun_s = time.monotonic()
    with (
        console.status("each model alone under vLLM's stock worker, for comparison"),
        ThreadPoolExecutor(min(os.cpu_count() or 1, len(checkpoints))) as threads,
    ):
        answers = await asyncio.gather(
            *(
                loop.run_in_executor(
                    threads,
                    partial(
                        reference_answers,
                        checkpoint,
                        requests[name],
                        cache=cache,
                        environment=pool.ENGINE_ENVIRONMENT,
                        max_model_len=pool.MAX_MODEL_LEN,
                        kv_cache_bytes=pool.KV_CACHE_BYTES,
                    ),
                )
                for name, checkpoint in checkpoints.items()
            )
        )
    console.print(
        f"reference answers of each model alone: there after {time.monotonic() - begun_s:.1f} s"
    )
    return dict(zip(checkpoints, answers, strict=True))


async def _chat(
    console: Console, server: PoolServer, client: httpx.AsyncClient
) -> list[dict[str, ModelRun]]:
    """Rounds of chats with all models at once, until enough swaps fell inside answers."""
    requests = demo_requests()
    wanted = sum(request.max_tokens for listed in requests.values() for request in listed)
    rounds: list[dict[str, ModelRun]] = []
    swaps = 0

    async def swap_ins(model: str) -> int:
        return figures.swap_ins_of(await server.status(client), model)

    text = f"{sum(map(len, requests.values()))} chats at once with {len(requests)} models"
    while swaps < figures.MIN_SWAPS_INSIDE_ANSWERS and len(rounds) < MAX_ROUNDS:
        console.print(f"{text}, {wanted} tokens")
        with console.status(text) as line:
            told = _TokenCount(line.update, wanted)
            rounds.append(await _round(server, requests, swap_ins, told))
        swaps += sum(run.swaps_inside_answers for run in rounds[-1].values())
        console.print(f"answered; {swaps} swap-ins inside answers so far")
    return rounds


async def _round(
    server: PoolServer,
    requests: dict[str, list[ChatRequest]],
    swap_ins: Callable[[str], Awaitable[int]],
    told: Callable[[str, int], None],
) -> dict[str, ModelRun]:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=CHAT_TIMEOUT_S
    ) as client:
        try:
            async with asyncio.timeout(CHAT_TIMEOUT_S):
                return await chat_with_all(client, requests, swap_ins, told)
        except TimeoutError:
            problem = f"the answers took over {CHAT_TIMEOUT_S:.0f} s"
        except ExceptionGroup as group:
            problem = f"a chat failed: {_first(group)!r}"
    raise ServerError(server.with_log(problem))


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """The first failure; whatever is no failure of the server's is raised again."""
    problem = group.exceptions[0]
    if isinstance(problem, ExceptionGroup):
        return _first(problem)
    if not isinstance(problem, (OpenAIError, httpx.HTTPError, ServerError)):
        raise problem
    return problem


class _TokenCount:
    """Shows how many tokens of each model have come."""

    def __init__(self, show: Callable[[str], None], wanted: int) -> None:
        self._show = show
        self._wanted = wanted
        self._tokens: Counter[str] = Counter()

    def __call__(self, model: str, count: int) -> None:
        self._tokens[model] += count
        each = ", ".join(f"{name} {tokens}" for name, tokens in sorted(self._tokens.items()))
        self._show(f"{self._tokens.total()} of {self._wanted} tokens: {each}")


class _Changes:
    """Prints each new line once: progress where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def __call__(self, line: str) -> None:
        if line != self._last:
            self._last = line
            self._console.print(line, markup=False)


def _write_json(path: Path, found: Figures, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**found.as_json(), "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
