"""What an engine tells of its requests, so that a policy knows when their tokens are due."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gpupool.daemon.protocol import WORKING_MAX, Working

_PERIOD_S = 0.02
"""Tokens alone are told of no more often than that."""
_NAME_BYTES_MAX = 128  # so that a message of WORKING_MAX fits a packet


class Reporter:
    """Follows the scheduler's output, and tells of it when there is news. One thread's.

    What cannot be told at once is told with the next: no step waits for whoever listens.
    """

    def __init__(
        self, tell: Callable[[Working], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """No requests yet. ``tell`` says whether it could."""
        self._tell = tell
        self._clock = clock
        self._numbers: dict[str, int] = {}
        self._count = 0
        # What is to be told: never more than there are requests, and those told of that ended.
        self._began: dict[int, tuple[int, str, int]] = {}
        self._produced: dict[int, int] = {}
        self._ended: list[int] = []
        self._steps = self._prefilled_tokens = 0
        self._steps_s = self._prefills_s = 0.0
        self._told_s = 0.0
        self._before: tuple[float, int] | None = None
        """When the last step began, and how many tokens it prefilled, if any."""

    def scheduled(self, scheduled: Any) -> None:
        """A scheduler output, before it runs."""
        for request_id in scheduled.finished_req_ids:
            number = self._numbers.pop(request_id, None)
            if number is None:
                continue
            self._produced.pop(number, None)
            if self._began.pop(number, None) is None:
                self._ended.append(number)
        for new in scheduled.scheduled_new_reqs:
            if new.req_id not in self._numbers:
                self._count += 1
                self._numbers[new.req_id] = self._count
                prompt_tokens = len(new.prompt_token_ids or ())  # none of a prompt in embeddings
                self._began[self._count] = self._count, _name(new.req_id), prompt_tokens
        cached = scheduled.scheduled_cached_reqs
        for request_id, tokens in zip(cached.req_ids, cached.num_output_tokens, strict=True):
            if (number := self._numbers.get(request_id)) is not None:
                self._produced[number] = tokens
        if self._began or self._ended:
            self.flush()
        if not self._numbers:
            self._before = None

    def begins(self, scheduled: Any, *, waited: bool) -> None:
        """It begins now; ``waited`` for memory, or right behind the one before.

        A step takes from its begin to that of the next: so the device's work counts too, which
        other code waits for.
        """
        now_s = self._clock()
        if self._before is not None and not waited:
            began_s, prefilled_tokens = self._before
            if prefilled_tokens:
                self._prefilled_tokens += prefilled_tokens
                self._prefills_s += now_s - began_s
            else:
                self._steps += 1
                self._steps_s += now_s - began_s
        self._before = now_s, _prefilled_tokens(scheduled)
        if now_s - self._told_s >= _PERIOD_S:
            self.flush()

    def flush(self) -> None:
        """Tell what there is, in as many parts as it takes."""
        self._told_s = self._clock()
        while self._began or self._ended or self._produced or self._steps or self._prefills_s:
            began = list(self._began.values())[:WORKING_MAX]
            ended = self._ended[:WORKING_MAX]
            # Of those that nobody knows yet, what they made comes later.
            known = [of for of in self._produced.items() if of[0] not in self._began]
            produced = known[:WORKING_MAX]
            work = Working(
                began,
                produced,
                ended,
                self._steps,
                self._steps_s,
                self._prefilled_tokens,
                self._prefills_s,
            )
            if not self._tell(work):
                return
            for number, *_ in began:
                del self._began[number]
            for number, _ in produced:
                del self._produced[number]
            del self._ended[: len(ended)]
            self._steps = self._prefilled_tokens = 0
            self._steps_s = self._prefills_s = 0.0


def _prefilled_tokens(scheduled: Any) -> int:
    """How many tokens of prompts the step computes."""
    cached = scheduled.scheduled_cached_reqs
    prompts = [new.req_id for new in scheduled.scheduled_new_reqs]
    made = zip(cached.req_ids, cached.num_output_tokens, strict=True)
    prompts += [request_id for request_id, tokens in made if tokens == 0]
    return sum(scheduled.num_scheduled_tokens.get(request_id, 0) for request_id in prompts)


def _name(request_id: str) -> str:
    """The end of a request's name, where a router's own is: what comes before may be long."""
    return request_id.encode("ascii", "replace")[-_NAME_BYTES_MAX:].decode() or "?"
