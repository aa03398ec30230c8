"""Unfinished requests, as the router announces them and as engines tell of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from gpupool.schedule.work import Request

EACH_MAX = 1 << 16
"""Requests that one teller, or one engine, can have unfinished: more are not followed."""


@dataclass(eq=False)
class _Announced:
    """A request on its way to its engine, until that tells of it."""

    teller: Hashable
    model: str
    request_id: str
    request: Request
    heard_of: bool = False
    """Its engine has told of it, as one request or as several."""


@dataclass(eq=False)
class _OfModel:
    announced: dict[str, _Announced] = field(default_factory=dict)
    """By their ids."""
    running: dict[int, Request] = field(default_factory=dict)
    """By the numbers that the engine gives them."""


class Requests:
    """Whose requests there are. An announced one becomes the engine's that has its id in its own,
    between dashes.

    So it keeps the time at which it came. One that never reaches the model, or was not announced,
    is followed all the same.
    """

    def __init__(self) -> None:
        """None yet."""
        self._models: dict[str, _OfModel] = {}
        self._told: dict[Hashable, dict[str, _Announced]] = {}
        self._count = 0
        self.changed: set[str] = set()
        """Models of which ``of`` says something else since whoever reads this emptied it."""
        self.went_on: set[str] = set()
        """The same, of models whose requests are others or have other tokens."""

    def announce(
        self, teller: Hashable, model: str, request_id: str, prompt_tokens: int, now_s: float
    ) -> None:
        """A request has come and is on its way; an id that is under way already is not counted."""
        told = self._told.setdefault(teller, {})
        known = self._models[model].announced if model in self._models else ()
        if request_id in told or request_id in known or len(told) >= EACH_MAX:
            return
        request = self._new(prompt_tokens, now_s)
        told[request_id] = _Announced(teller, model, request_id, request)
        self._models.setdefault(model, _OfModel()).announced[request_id] = told[request_id]
        self._stir(model)

    def over(self, teller: Hashable, request_id: str) -> None:
        """What was announced has its answer, or wants none any more."""
        announced = self._told.get(teller, {}).pop(request_id, None)
        if announced is not None:
            del self._models[announced.model].announced[request_id]
            self._tidy(announced.model)

    def forget_teller(self, teller: Hashable) -> None:
        """Nobody will tell how what it announced goes on."""
        for request_id in list(self._told.get(teller, {})):
            self.over(teller, request_id)
        self._told.pop(teller, None)

    def began(
        self, model: str, number: int, request_id: str, prompt_tokens: int, now_s: float
    ) -> None:
        """The engine of a model has a request, which it calls by this number from now on."""
        of_model = self._models.setdefault(model, _OfModel())
        if number in of_model.running or len(of_model.running) >= EACH_MAX:
            return
        self._stir(model)
        parts = (of_model.announced.get(part) for part in request_id.split("-"))
        announced = next((found for found in parts if found is not None), None)
        if announced is None:
            of_model.running[number] = self._new(prompt_tokens, now_s)
        elif announced.heard_of:  # one more of the same: several answers were asked for
            of_model.running[number] = self._new(prompt_tokens, announced.request.arrival_s)
        else:
            announced.heard_of = True
            announced.request.prompt_tokens = prompt_tokens
            of_model.running[number] = announced.request

    def produced(self, model: str, made: Iterable[tuple[int, int]]) -> list[Request]:
        """So many tokens in all, by the numbers of requests; those with their first ones."""
        first = []
        self.went_on.add(model)
        running = self._models.get(model, _OfModel()).running
        for number, tokens in made:
            if (request := running.get(number)) is not None:
                if not request.produced_tokens and tokens:
                    first.append(request)
                request.produced_tokens = tokens
                request.prefilled = request.prefilled or tokens > 0
        return first

    def ended(self, model: str, numbers: Iterable[int]) -> None:
        """The engine has done with these."""
        if (of_model := self._models.get(model)) is not None:
            for number in numbers:
                of_model.running.pop(number, None)
            self._tidy(model)

    def gone(self, model: str) -> None:
        """The engine has ended, and with it what it ran."""
        self.ended(model, list(self._models.get(model, _OfModel()).running))

    def announced_as(self, request: Request, model: str) -> tuple[Hashable, str] | None:
        """Who announced a request, and its id there; None if nobody did."""
        for found in self._models.get(model, _OfModel()).announced.values():
            if found.request is request:
                return found.teller, found.request_id
        return None

    def of(self, model: str) -> list[Request]:
        """Those of a model, on their way or in its engine, in the order of their coming."""
        of_model = self._models.get(model)
        if of_model is None:
            return []
        found = [a.request for a in of_model.announced.values() if not a.heard_of]
        found += of_model.running.values()
        found.sort(key=lambda request: (request.arrival_s, request.key))
        return found

    def unannounced(self, key: int, arrival_s: float) -> Request:
        """A request that stands for work of which nobody tells more than that it is there."""
        request = self._new(1, arrival_s)
        request.model, request.prefilled = key, True
        return request

    def _new(self, prompt_tokens: int, now_s: float) -> Request:
        self._count += 1
        return Request(self._count, -1, now_s, prompt_tokens)

    def _stir(self, model: str) -> None:
        self.changed.add(model)
        self.went_on.add(model)

    def _tidy(self, model: str) -> None:
        of_model = self._models[model]
        self._stir(model)
        if not of_model.announced and not of_model.running:
            del self._models[model]
