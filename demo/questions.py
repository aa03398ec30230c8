"""The chats that the demo sends, and the shape of an answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MAX_TOKENS = 400

# Random weights give no confident answers: now and then two tokens are nearly as likely. In these
# chats, noise of 0.0003 added to every logit, far more than float32 rounding does to them, changed
# no token. So batches put together in another way do not change one either.
_QUESTIONS = {
    "llama-small": (
        "How does a river find its way to the sea?",
        "Tell me a story about a clock that ran backwards.",
        "Why do bridges hum when the wind is strong?",
        "Write a letter from a lighthouse to a passing ship.",
        "How far can a letter travel?",
        "Describe the market square on a winter morning.",
    ),
    "llama-wide": (
        "Explain how a clock keeps time without a battery.",
        "What would a mountain say if it could speak?",
        "Give me three reasons to learn the names of stars.",
        "Tell the tale of a merchant who sold only promises.",
        "How do I mend a torn sail at sea?",
        "Write a song for a train that never stops.",
    ),
    "llama-deep": (
        "How do birds know when it is time to leave?",
        "Describe a house with no doors.",
        "Explain the rules of a game played only in the rain.",
        "Tell me about a bridge between two villages.",
        "What does the keeper of a forest do all day?",
        "How is paper made from wood?",
    ),
}


@dataclass(frozen=True)
class ChatRequest:
    """One chat: greedy when `temperature` is 0, else sampled with `seed`."""

    question: str
    max_tokens: int
    temperature: float
    seed: int

    def messages(self) -> list[dict[str, str]]:
        """The chat in OpenAI's form."""
        return [{"role": "user", "content": self.question}]

    def sampling(self) -> dict[str, Any]:
        """Parameters that mean the same to vLLM's server and to its `SamplingParams`.

        The end token is ignored, so that every answer has `max_tokens` tokens.
        """
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "ignore_eos": True,
        }

    def as_json(self) -> dict[str, Any]:
        """Its fields, to be written as JSON and given to the constructor again."""
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """Token ids of one answer, and of the prompt that the model was given for it."""

    prompt_token_ids: list[int]
    token_ids: list[int]


def demo_requests(max_tokens: int = MAX_TOKENS) -> dict[str, list[ChatRequest]]:
    """The chats for each model: every second one sampled, the others greedy."""
    return {
        model: [
            ChatRequest(
                question=question,
                max_tokens=max_tokens,
                temperature=0.8 if number % 2 else 0.0,
                seed=100 + number,
            )
            for number, question in enumerate(questions)
        ]
        for model, questions in _QUESTIONS.items()
    }


def first_difference(expected: list[int], got: list[int]) -> int | None:
    """Index of the first token that differs, or None when the two are equal."""
    if expected == got:
        return None
    pairs = zip(expected, got, strict=False)
    shared = min(len(expected), len(got))
    return next((index for index, (one, other) in enumerate(pairs) if one != other), shared)


def differing_tokens(expected: Answer, got: Answer) -> int:
    """Tokens of `got` that are not what they are in `expected`, missing and extra ones included.

    A prompt that differs makes every token of the answer count.
    """
    if expected.prompt_token_ids != got.prompt_token_ids:
        return max(len(expected.token_ids), len(got.token_ids), 1)
    equal = sum(one == other for one, other in zip(expected.token_ids, got.token_ids, strict=False))
    return max(len(expected.token_ids), len(got.token_ids)) - equal
