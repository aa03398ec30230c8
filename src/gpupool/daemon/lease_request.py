"""One Acquire of a client: what is granted to it, used early, and taken back."""

from __future__ import annotations

import time
from enum import Enum

from gpupool.daemon import protocol as p
from gpupool.daemon.link import REPLY_TIMEOUT_S, Link
from gpupool.daemon.page_table import PageTable
from gpupool.errors import (
    DaemonUnavailableError,
    GpupoolError,
    LeaseTimeoutError,
    SwapCancelledError,
)
from gpupool.session import Early, PageGrant, Wanted

_POLL_S = 0.02


class Answer(Enum):
    """What became of a question for pages."""

    GRANTED = "granted"
    SOME = "some of it, and more to come"
    CANCELLED = "cancelled"
    NONE = "none in time"


def collect(
    link: Link,
    table: PageTable,
    numbers: list[int],
    deadline_s: float,
    *,
    some: bool = False,
    shared: list[tuple[int, int]] | None = None,
) -> Answer:
    """Add the pages of a grant to ``numbers`` until it is whole, or ``some``, or time is over.

    Those that others have as well go to ``shared``, each behind its place.
    """
    while True:
        reply = link.reply(deadline_s - time.monotonic())
        if reply is None:
            return Answer.NONE
        message, fds = reply
        if isinstance(message, p.Ok):
            return Answer.CANCELLED
        if not isinstance(message, p.Granted) or len(message.new) != len(fds):
            link.out_of_turn(reply)
        table.learn(message.new, fds)
        numbers.extend(message.pages)
        if shared is not None:
            shared.extend(message.shared)
        if message.last:
            return Answer.GRANTED
        if some:
            return Answer.SOME


class LeaseRequest:
    """Asks once, and either gets the pages or has taken the question back."""

    def __init__(
        self,
        link: Link,
        table: PageTable,
        early: Early | None,
        wanted: Wanted | None,
        *,
        ahead: bool,
    ) -> None:
        """To be asked with ``grant``: while it is ``wanted``, and ``ahead`` of use or not."""
        self._link = link
        self._table = table
        self._early = early
        self._wanted = wanted
        self._ahead = ahead
        self._numbers: list[int] = []
        self._shared: list[tuple[int, int]] = []
        self._used = 0

    def grant(self, timeout_s: float) -> PageGrant:
        """What is granted and not used early. Raises as ``Session.acquire``."""
        deadline_s = time.monotonic() + timeout_s
        self._link.send(p.Acquire(self._early is not None and not self._ahead, self._ahead))
        while (answer := self._await(deadline_s)) is Answer.SOME:
            try:
                self._use()
            except BaseException:
                self._end(self._withdraw())
                raise
        if answer is Answer.NONE:
            answer = self._withdraw()
        if answer is Answer.CANCELLED and self._is_unwanted():
            raise SwapCancelledError("what was asked for is not wanted any more")
        if answer is Answer.CANCELLED:
            raise LeaseTimeoutError(
                f"no memory within {round(timeout_s, 1):g} s: other models hold the pool"
            )
        try:
            pages = self._table.pages(self._numbers[self._used :])
            shared = [(place, self._table.page(number)) for place, number in self._shared]
            return PageGrant(pages, shared=shared)
        except BaseException:
            self._end(answer)
            raise

    def _use(self) -> None:
        assert self._early is not None
        self._used += self._early.use(self._table.pages(self._numbers[self._used :]))

    def _is_unwanted(self) -> bool:
        return self._wanted is not None and not self._wanted()

    def _undo(self) -> bool:
        return self._early is None or self._early.undo()

    def _await(self, deadline_s: float) -> Answer:
        """As ``_answer``; an interrupt, as by Ctrl-C, takes the Acquire back."""
        try:
            while True:
                # Nobody tells that it is not wanted any more.
                limit_s = deadline_s if self._wanted is None else time.monotonic() + _POLL_S
                answer = self._answer(min(limit_s, deadline_s), some=self._early is not None)
                over = time.monotonic() >= deadline_s or self._is_unwanted()
                if answer is not Answer.NONE or over:
                    return answer
        except GpupoolError:
            raise
        except BaseException:
            self._end(self._withdraw())
            raise

    def _answer(self, deadline_s: float, *, some: bool) -> Answer:
        """What comes of an Acquire; after a GpupoolError nothing is held."""
        try:
            return collect(
                self._link,
                self._table,
                self._numbers,
                deadline_s,
                some=some,
                shared=self._shared,
            )
        except DaemonUnavailableError:
            self._undo()
            raise
        except GpupoolError:  # refused: what it began with is expected back
            if self._numbers:
                self._end(Answer.GRANTED)
            raise

    def _withdraw(self) -> Answer:
        """Take an Acquire back; GRANTED if all pages came first, and none had been granted before.

        Else what was granted is given back, and what is warm too, unless it came alone.
        """
        untouched = not self._numbers
        try:
            mapped = untouched or not self._undo()
            self._link.send(p.Cancel(mapped))
            # A grant may be on its way; either it or the Ok comes next.
            answer = self._answer(time.monotonic() + REPLY_TIMEOUT_S, some=False)
        except GpupoolError:
            raise
        except BaseException:  # interrupted: what comes next would be taken for another answer
            self._link.hang_up("taking an Acquire back was interrupted")
            raise
        if answer is Answer.NONE:
            self._link.fail("the pool daemon does not answer")
        if self._numbers and untouched is not (answer is Answer.GRANTED):
            self._end(Answer.GRANTED)
            return Answer.CANCELLED
        return answer

    def _end(self, answer: Answer) -> None:
        """Give back what was granted, unless it is mapped still."""
        try:
            if answer is Answer.GRANTED and self._undo():
                self._link.send(p.Yielded(None))
        except GpupoolError:
            raise
        except BaseException:  # interrupted: the daemon waits for what nobody would say
            self._link.hang_up("giving pages back was interrupted")
            raise
