"""Requests that depend on a seed alone, some with a beginning in common."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

CONCURRENT = 6
PROMPT_TOKENS = (8, 120)
ANSWER_TOKENS = (8, 96)
COMMON_TOKENS = 64  # of prompts that begin alike, so that a prefix cache has them
CONTEXT_TOKENS = 384  # of the longest
FIRST_ID = 100  # ids below may mean something


@dataclass(frozen=True)
class Asked:
    """A request."""

    prompt: list[int]
    answer_tokens: int


class Traffic:
    """Requests without end."""

    def __init__(self, seed: str, vocabulary: int) -> None:
        self._random = Random(seed)
        self._vocabulary = vocabulary
        self._common = self._tokens(COMMON_TOKENS)

    def next(self, running: int) -> Asked | None:
        """The next one, unless enough are running."""
        if running >= CONCURRENT:
            return None
        prompt = self._tokens(self._random.randint(*PROMPT_TOKENS))
        if self._random.random() < 0.5:
            prompt = self._common + prompt
        return Asked(prompt, self._random.randint(*ANSWER_TOKENS))

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(FIRST_ID, self._vocabulary) for _ in range(count)]
