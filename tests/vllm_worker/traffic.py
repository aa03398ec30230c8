"""What is asked of an engine: a stream of requests of every kind, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.lora.request import LoRARequest

STOPS = ["gh", "tion", "ou"]


@dataclass(frozen=True)
class Asked:
    """One request."""

    name: str
    prompt: list[int]
    sampling: SamplingParams
    lora: LoRARequest | None


def traffic(index: int, seed: int, adapters: list[Path], *, seeded: bool) -> Iterator[Asked]:
    """For engine ``index``, without end.

    Short and long prompts, many with a prefix that others have too; stop strings; with ``seeded``
    also seeded sampling, of up to three samples; with ``adapters``, some through one of them.
    """
    rng = random.Random(seed * 100 + index)
    shared = [rng.randrange(10, 8000) for _ in range(260)]
    number = 0
    while True:
        number += 1
        common: dict[str, Any] = {"max_tokens": rng.randint(8, 40), "logprobs": 2}
        kind = rng.choice(("prefix", "prefix", "long", "seeded" if seeded else "short", "stop"))
        if kind == "prefix":
            prompt = [*shared[: rng.choice((130, 260))], *(rng.randrange(10, 8000) for _ in "ab")]
        else:
            length = rng.randint(150, 250) if kind == "long" else rng.randint(3, 40)
            prompt = [rng.randrange(10, 8000) for _ in range(length)]
        if kind == "seeded":
            common |= {"temperature": 0.9, "seed": rng.randrange(1000), "n": rng.randint(1, 3)}
        else:
            common["temperature"] = 0.0
        if kind == "stop":
            common["stop"] = STOPS
        lora = None
        if adapters and rng.random() < 0.5:
            which = rng.randrange(len(adapters))
            lora = LoRARequest(f"adapter{which}", which + 1, str(adapters[which]))
        name = f"{index}-{kind}{number}" + ("-lora" if lora else "")
        yield Asked(name, prompt, SamplingParams(**common), lora)
