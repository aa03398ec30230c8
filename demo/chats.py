"""Interleaved streaming chats with every model, through the official client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI

from demo.questions import Answer, ChatRequest


@dataclass(frozen=True)
class ModelRun:
    """All answers of one model, in the order of its requests."""

    answers: list[Answer]
    swaps_inside_answers: int
    seconds: float


async def chat_with_all(
    client: AsyncOpenAI,
    requests: dict[str, list[ChatRequest]],
    swap_ins: Callable[[str], Awaitable[int]],
    on_tokens: Callable[[str, int], None],
) -> dict[str, ModelRun]:
    """Send every request of every model at once and read all answers as they come.

    `swap_ins` tells how often a model was swapped in so far. `on_tokens` is told of each piece
    of an answer: model, number of tokens. The first failure ends the other requests.
    """
    async with asyncio.TaskGroup() as group:
        runs = {
            model: group.create_task(_chat_with_one(client, model, listed, swap_ins, on_tokens))
            for model, listed in requests.items()
        }
    return {model: run.result() for model, run in runs.items()}


async def _chat_with_one(
    client: AsyncOpenAI,
    model: str,
    requests: list[ChatRequest],
    swap_ins: Callable[[str], Awaitable[int]],
    on_tokens: Callable[[str, int], None],
) -> ModelRun:
    """The model's swap-ins are counted between its first token and its last.

    All its requests are open from the start, so that an answer is under way all the time.
    """
    begun_s = time.monotonic()
    first_token = asyncio.Event()

    def told(count: int) -> None:
        first_token.set()
        on_tokens(model, count)

    async def count_at_first_token() -> int:
        await first_token.wait()
        return await swap_ins(model)

    async with asyncio.TaskGroup() as group:
        before = group.create_task(count_at_first_token())
        async with asyncio.TaskGroup() as chats:
            answers = [
                chats.create_task(_chat(client, model, request, told)) for request in requests
            ]
        first_token.set()  # answers without a token must not leave the count waiting
    after = await swap_ins(model)
    return ModelRun(
        answers=[answer.result() for answer in answers],
        swaps_inside_answers=after - before.result(),
        seconds=time.monotonic() - begun_s,
    )


async def _chat(
    client: AsyncOpenAI, model: str, request: ChatRequest, told: Callable[[int], None]
) -> Answer:
    sampling = request.sampling()
    messages: Any = request.messages()
    stream = await client.chat.completions.create(
        model=model,
        messages=messages,
        stream=True,
        max_tokens=sampling["max_tokens"],
        temperature=sampling["temperature"],
        seed=sampling["seed"],
        # vLLM's own: the ids of prompt and answer beside the text.
        extra_body={"ignore_eos": sampling["ignore_eos"], "return_token_ids": True},
    )
    prompt: list[int] = []
    answer: list[int] = []
    async for chunk in stream:
        prompt = prompt or getattr(chunk, "prompt_token_ids", None) or []
        for choice in chunk.choices:
            ids = getattr(choice, "token_ids", None) or []
            answer += ids
            if ids:
                told(len(ids))
    return Answer(prompt, answer)
