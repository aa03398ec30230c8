"""What the router tells of requests that are on their way."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
import httpx
import pytest
from router_bench import CHAT, FakeBackend, error_of, metric, routing
from serving import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from waiting import until

from gpupool.serve.lifecycle import Phase
from gpupool.serve.router import Router


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


@pytest.mark.parametrize("given", ["mine", "", "x" * 900])
def test_the_clients_own_name_for_it_stays_in_front(given: str) -> None:
    announcer = Announcer()
    with announcing(announcer) as client:
        names = set()
        for _ in range(2):
            headers = {"X-Request-Id": given}
            found = client.post(CHAT, json={"model": "m"}, headers=headers).json()
            front, _, name = found["name"].rpartition("-")
            assert front == given[:64] and len(name) == 32
            assert announcer.told[-2:] == [("announce", "m", name), ("over", name)]
            names.add(name)
        assert len(names) == 2


def test_without_anybody_to_tell_a_requests_name_is_the_clients() -> None:
    async def engine(request: Request) -> Response:
        return JSONResponse(request.headers.get("x-request-id"))

    app = Starlette(routes=[Route(CHAT, engine, methods=["POST"])])
    with serving(app) as url, routing(FakeBackend("m", url)) as client:
        assert client.post(CHAT, json={"model": "m"}).json() is None
        headers = {"X-Request-Id": "mine"}
        assert client.post(CHAT, json={"model": "m"}, headers=headers).json() == "mine"


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


class GivesUp(Announcer):
    """Gives up when it is told to, on the router's own thread, as news from the daemon come."""

    def announce(self, model: str, request_id: str, prompt_tokens: int) -> None:
        super().announce(model, request_id, prompt_tokens)
        self.loop = asyncio.get_running_loop()

    def now(self, router: Router) -> None:
        self.loop.call_soon_threadsafe(router.give_up, self.told[-1][2])
        self.loop.call_soon_threadsafe(router.give_up, "what nobody announced")


@pytest.mark.parametrize("sends", ["whole", "stream without tokens"])
def test_a_request_without_a_turn_is_taken_back_from_its_engine(sends: str) -> None:
    announcer, routers, left = GivesUp(), list[Router](), threading.Event()

    async def engine(request: Request) -> Response:
        if sends == "whole":
            announcer.now(routers[0])
            while (await request.receive())["type"] != "http.disconnect":
                pass
            left.set()
            return Response()

        async def events() -> AsyncIterator[bytes]:
            try:
                yield b""
                announcer.now(routers[0])
                await anyio.sleep_forever()
            finally:
                left.set()

        return StreamingResponse(events(), media_type="text/event-stream")

    app = Starlette(routes=[Route(CHAT, engine, methods=["POST"])])
    with (
        serving(app) as url,
        routing(FakeBackend("m", url), announcer=announcer, on_router=routers.append) as client,
    ):
        answer = client.post(CHAT, json={"model": "m"})
        if answer.status_code == 503:
            assert answer.headers["retry-after"]
            error = error_of(answer)
        else:  # its stream had begun
            assert sends != "whole"
            error = json.loads(answer.text.removeprefix("data: "))["error"]
        assert error["code"] == "overloaded"
        assert left.wait(10)
        until(lambda: metric(client, 'gpupool_requests_total{code="503",model="m"}') == 1)
        assert [kind for kind, *_ in announcer.told] == ["announce", "over"]


def test_an_answer_of_which_a_part_is_out_goes_on() -> None:
    announcer, routers, go_on = GivesUp(), list[Router](), threading.Event()

    async def engine(request: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            yield b"data: first\n\n"
            await anyio.to_thread.run_sync(go_on.wait)
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    app = Starlette(routes=[Route(CHAT, engine, methods=["POST"])])
    with (
        serving(app) as url,
        routing(FakeBackend("m", url), announcer=announcer, on_router=routers.append) as client,
        client.stream("POST", CHAT, json={"model": "m"}) as answer,
    ):
        chunks = answer.iter_raw()
        assert next(chunks) == b"data: first\n\n"
        announcer.now(routers[0])
        announcer.loop.call_soon_threadsafe(go_on.set)  # after that
        assert b"".join(chunks) == b"data: [DONE]\n\n"
