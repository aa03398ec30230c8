"""What an engine tells of its requests, so that a policy knows when their tokens are due."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gpupool.daemon.protocol import REQUEST_ID_CHARACTERS_MAX, WORKING_MAX, Working

_PERIOD_S = 0.02
"""Tokens alone are told of no more often than that."""
_PREFILL_RATIO = 2
"""A step of more tokens per request than that is one of prefills: draft tokens are few."""


class Reporter:
    """Follows the scheduler's output, and tells of it when there is news. One thread's."""

    def __init__(
        self, tell: Callable[[Working], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """No requests yet."""
        self._tell = tell
        self._clock = clock
        self._numbers: dict[str, int] = {}
        self._count = 0
        self._began: list[tuple[int, str, int]] = []
        self._produced: dict[int, int] = {}
        self._ended: list[int] = []
        self._steps = self._prefilled_tokens = 0
        self._steps_s = self._prefills_s = 0.0
        self._told_s = 0.0

    def scheduled(self, scheduled: Any) -> None:
        """A scheduler output, before it runs."""
        for request_id in scheduled.finished_req_ids:
            number = self._numbers.pop(request_id, None)
            if number is not None:
                self._produced.pop(number, None)
                self._ended.append(number)
        for new in scheduled.scheduled_new_reqs:
            if new.req_id not in self._numbers:
                self._count += 1
                self._numbers[new.req_id] = self._count
                name = new.req_id[:REQUEST_ID_CHARACTERS_MAX] or "?"
                self._began.append((self._count, name, new.prompt_len))
        cached = scheduled.scheduled_cached_reqs
        for request_id, tokens in zip(cached.req_ids, cached.num_output_tokens, strict=True):
            if (number := self._numbers.get(request_id)) is not None:
                self._produced[number] = tokens
        if self._began or self._ended:
            self.flush()

    def ran(self, scheduled: Any, took_s: float) -> None:
        """It has run, for so long."""
        tokens = scheduled.total_num_scheduled_tokens
        if tokens > _PREFILL_RATIO * len(scheduled.num_scheduled_tokens):
            self._prefilled_tokens += tokens
            self._prefills_s += took_s
        else:
            self._steps += 1
            self._steps_s += took_s
        if self._clock() - self._told_s >= _PERIOD_S:
            self.flush()

    def flush(self) -> None:
        """Tell what there is, in as many parts as it takes."""
        while self._began or self._ended or self._produced or self._steps or self._prefills_s:
            began, self._began = self._began[:WORKING_MAX], self._began[WORKING_MAX:]
            ended, self._ended = self._ended[:WORKING_MAX], self._ended[WORKING_MAX:]
            produced = list(self._produced.items())[:WORKING_MAX]
            for number, _ in produced:
                del self._produced[number]
            self._tell(
                Working(
                    began,
                    produced,
                    ended,
                    self._steps,
                    self._steps_s,
                    self._prefilled_tokens,
                    self._prefills_s,
                )
            )
            self._steps = self._prefilled_tokens = 0
            self._steps_s = self._prefills_s = 0.0
        self._told_s = self._clock()
