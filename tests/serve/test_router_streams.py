"""Streams through the router, and engines and clients that go away in the middle."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator

import anyio
import pytest
from router_bench import CHAT, FakeBackend, error_of, metric, routing
from serving import raw_server, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from waiting import until


def test_streams_chunk_by_chunk_in_order() -> None:
    go_on = [threading.Event() for _ in range(3)]

    async def stream(request: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            for number, event in enumerate(go_on):
                yield b"data: %d\n\n" % number
                await anyio.to_thread.run_sync(event.wait)
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    engine = Starlette(routes=[Route(CHAT, stream, methods=["POST"])])
    with serving(engine) as url, routing(FakeBackend("a", url)) as client:
        with client.stream("POST", CHAT, json={"model": "a"}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            chunks = answer.iter_raw()
            for number, event in enumerate(go_on):
                # The engine sends no more before this one has arrived here.
                assert next(chunks) == b"data: %d\n\n" % number
                assert metric(client, 'gpupool_requests_in_flight{model="a"}') == 1
                event.set()
            assert b"".join(chunks) == b"data: [DONE]\n\n"
        assert metric(client, 'gpupool_requests_total{code="200",model="a"}') == 1


def test_a_client_that_leaves_in_mid_stream_aborts_the_engines_request() -> None:
    aborted = threading.Event()

    async def stream(request: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            try:
                yield b"data: first\n\n"
                await anyio.sleep_forever()
            finally:
                aborted.set()

        return StreamingResponse(events(), media_type="text/event-stream")

    engine = Starlette(routes=[Route(CHAT, stream, methods=["POST"])])
    with serving(engine) as url, routing(FakeBackend("a", url)) as client:
        with client.stream("POST", CHAT, json={"model": "a"}) as answer:
            assert next(answer.iter_raw()) == b"data: first\n\n"
        assert aborted.wait(10)
        until(lambda: metric(client, 'gpupool_requests_total{code="499",model="a"}') == 1)
        assert metric(client, 'gpupool_requests_in_flight{model="a"}') == 0


def test_a_client_that_leaves_before_the_answer_aborts_the_engines_request() -> None:
    entered, aborted = threading.Event(), threading.Event()

    async def wait(request: Request) -> Response:
        entered.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        aborted.set()
        return Response()

    engine = Starlette(routes=[Route(CHAT, wait, methods=["POST"])])
    with serving(engine) as url, routing(FakeBackend("a", url)) as client:
        host, port = client.base_url.host, client.base_url.port
        assert port is not None
        with socket.create_connection((host, port)) as connection:
            connection.sendall(
                f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n".encode()
                + b'{"model": "a"}'
            )
            assert entered.wait(10)
        assert aborted.wait(10)


def test_an_engine_that_dies_before_it_answers_is_a_502() -> None:
    with raw_server(lambda _: None) as url, routing(FakeBackend("a", url)) as client:
        answer = client.post(CHAT, json={"model": "a"})
        assert answer.status_code == 502 and error_of(answer)["code"] == "engine_died"
        assert metric(client, 'gpupool_requests_total{code="502",model="a"}') == 1


def test_an_engine_where_nobody_listens_is_a_502() -> None:
    with routing(FakeBackend("a")) as client:
        assert client.post(CHAT, json={"model": "a"}).status_code == 502


def test_an_engine_that_dies_in_a_plain_answer_is_a_502() -> None:
    def half(connection: socket.socket) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )

    with raw_server(half) as url, routing(FakeBackend("a", url)) as client:
        assert client.post(CHAT, json={"model": "a"}).status_code == 502


def test_the_servers_own_words_on_its_dead_core_become_a_502() -> None:
    backend = FakeBackend("a", sound=False)

    async def fail(request: Request) -> Response:
        return JSONResponse({"error": {"message": "EngineCore encountered an issue"}}, 500)

    engine = Starlette(routes=[Route(CHAT, fail, methods=["POST"])])
    with serving(engine) as backend.base_url, routing(backend) as client:
        answer = client.post(CHAT, json={"model": "a"})
        assert answer.status_code == 502 and error_of(answer)["code"] == "engine_died"
        backend.sound = True
        assert client.post(CHAT, json={"model": "a"}).status_code == 500


@pytest.mark.parametrize("half", [b"", b'data: {"half'])
def test_an_engine_that_dies_in_mid_stream_ends_it_with_an_error_event(half: bytes) -> None:
    whole = b'data: {"n": 1}\n\n'

    def stream(connection: socket.socket) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        data = whole + half
        connection.sendall(b"%x\r\n%s\r\n" % (len(data), data))
        received.wait(10)

    received = threading.Event()
    with raw_server(stream) as url, routing(FakeBackend("a", url)) as client:
        with client.stream("POST", CHAT, json={"model": "a", "stream": True}) as answer:
            chunks = answer.iter_raw()
            assert answer.status_code == 200 and next(chunks) == whole
            received.set()
            last = b"".join(chunks)
        assert last.startswith(b"data: ") and last.endswith(b"\n\n") and b"[DONE]" not in last
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert error["code"] == "engine_died" and "a" in error["message"]
        assert metric(client, 'gpupool_requests_total{code="502",model="a"}') == 1


@pytest.mark.parametrize("sound", [True, False])
def test_the_servers_own_error_event_is_replaced_when_its_core_is_dead(sound: bool) -> None:
    own = b'data: {"error": {"message": "EngineCore"}}\n\ndata: [DONE]\n\n'

    async def stream(request: Request) -> Response:
        return Response(b"data: 1\n\n" + own, media_type="text/event-stream")

    engine = Starlette(routes=[Route(CHAT, stream, methods=["POST"])])
    with serving(engine) as url, routing(FakeBackend("a", url, sound=sound)) as client:
        text = client.post(CHAT, json={"model": "a"}).content
    assert text.startswith(b"data: 1\n\n")
    if sound:
        assert text.endswith(own)
    else:
        assert b"engine_died" in text and b"[DONE]" not in text and b"EngineCore" not in text
