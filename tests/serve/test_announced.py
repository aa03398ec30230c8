"""What the router tells of requests that are on their way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import pytest
from router_bench import CHAT, FakeBackend, routing
from serving import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gpupool.serve.lifecycle import Phase


@dataclass
class Announcer:
    told: list[tuple[str, ...]] = field(default_factory=list)
    tokens: int = 0

    def announce(self, model: str, request_id: str, prompt_tokens: int) -> None:
        self.told.append(("announce", model, request_id))
        self.tokens = prompt_tokens

    def over(self, request_id: str) -> None:
        self.told.append(("over", request_id))


@contextmanager
def announcing(announcer: Announcer, phase: Phase = Phase.READY) -> Iterator[httpx.Client]:
    async def engine(request: Request) -> Response:
        body = await request.json()
        if body.get("dies"):
            raise RuntimeError("no answer")
        # What was told by now, before there is an answer, and the name it was given.
        name = request.headers["x-request-id"]
        return JSONResponse({"told": announcer.told, "name": name}, body.get("code", 200))

    routes = [Route("/{path:path}", engine, methods=["POST"])]
    with serving(Starlette(routes=routes)) as url:
        backend = FakeBackend("m", url, phase)
        with routing(backend, announcer=announcer) as client:
            yield client


@pytest.mark.parametrize("code", [200, 400])
def test_a_request_is_announced_before_it_is_sent_on_and_over_with_its_answer(code: int) -> None:
    announcer = Announcer()
    with announcing(announcer) as client:
        found = client.post(CHAT, json={"model": "m", "code": code, "prompt": "x" * 400}).json()
        name = found["name"]
        assert found["told"] == [["announce", "m", name]]
        assert announcer.told == [("announce", "m", name), ("over", name)]
        assert len(name) == 32 and announcer.tokens >= 100


def test_the_clients_own_name_for_it_stays() -> None:
    announcer = Announcer()
    with announcing(announcer) as client:
        found = client.post(CHAT, json={"model": "m"}, headers={"X-Request-Id": "mine"}).json()
        assert found["name"] == "mine"
        assert announcer.told == [("announce", "m", "mine"), ("over", "mine")]


def test_an_engine_that_fails_ends_it_too() -> None:
    announcer = Announcer()
    with announcing(announcer) as client:
        assert client.post(CHAT, json={"model": "m", "dies": True}).status_code == 500
        assert [kind for kind, *_ in announcer.told] == ["announce", "over"]


@pytest.mark.parametrize(
    ("path", "phase", "model"),
    [
        ("/tokenize", Phase.READY, "m"),
        (CHAT, Phase.STARTING, "m"),
        (CHAT, Phase.READY, "unknown"),
    ],
)
def test_what_reaches_no_model_is_not_announced(path: str, phase: Phase, model: str) -> None:
    announcer = Announcer()
    with announcing(announcer, phase) as client:
        client.post(path, json={"model": model})
        assert announcer.told == []
