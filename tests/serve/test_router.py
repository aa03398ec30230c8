"""The router in front of fake engines, over real HTTP."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import pytest
from fake_pool import make_status, model_status
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import raw_server, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from waiting import until

from gpupool.daemon.protocol import Status
from gpupool.serve.lifecycle import Phase
from gpupool.serve.metrics import Metrics
from gpupool.serve.report import EngineReport
from gpupool.serve.router import Router

CHAT = "/v1/chat/completions"
LIMIT_BYTES = 4096


@dataclass
class FakeBackend:
    name: str
    base_url: str = "http://127.0.0.1:9"  # nobody listens there
    phase: Phase = Phase.READY
    retry_after_s: float = 2.5

    sound: bool = True

    async def is_sound(self) -> bool:
        return self.sound

    def report(self) -> EngineReport:
        return EngineReport(self.name, str(self.phase), 1, 2, 10.0, 0, self.retry_after_s, "")


@contextmanager
def routing(*backends: FakeBackend, status: Status | None = None) -> Iterator[httpx.Client]:
    async def ask_status() -> Status | None:
        return status

    router = Router(
        backends,
        client=httpx.AsyncClient(timeout=None, trust_env=False),
        metrics=Metrics(),
        ask_status=ask_status,
        max_body_bytes=LIMIT_BYTES,
    )
    with serving(router.app()) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


def metric(client: httpx.Client, line: str) -> float | None:
    for found in client.get("/metrics").text.splitlines():
        if found.startswith(line):
            return float(found.rpartition(" ")[2])
    return None


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return dict(error)


async def echo(request: Request) -> Response:
    return JSONResponse(
        {
            "path": request.url.path,
            "query": request.url.query,
            "headers": dict(request.headers),
            "body": (await request.body()).decode(),
        },
        status_code=418,
        headers={"x-engine": "yes", "keep-alive": "timeout=1"},
    )


@pytest.fixture(scope="module")
def echo_router() -> Iterator[httpx.Client]:
    engine = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])
    with serving(engine) as url, routing(FakeBackend("a", url), FakeBackend("org/b", url)) as made:
        yield made


def test_passes_requests_and_answers_on_unchanged(echo_router: httpx.Client) -> None:
    body = '{"model": "org/b", "stream": false, "n": 1e400}'
    answer = echo_router.post(
        f"{CHAT}?x=%20y",
        content=body,
        headers={"authorization": "Bearer k", "connection": "keep-alive, x-hop", "x-hop": "1"},
    )
    seen = answer.json()
    assert answer.status_code == 418 and answer.headers["x-engine"] == "yes"
    assert "keep-alive" not in answer.headers and len(answer.headers.get_list("date")) == 1
    assert (seen["path"], seen["query"], seen["body"]) == (CHAT, "x=%20y", body)
    assert "authorization" not in seen["headers"]  # the engines' key is the router's own
    assert "x-hop" not in seen["headers"]
    assert seen["headers"]["content-length"] == str(len(body))
    assert metric(echo_router, 'gpupool_requests_total{code="418",model="org/b"}') == 1
    assert metric(echo_router, 'gpupool_requests_in_flight{model="org/b"}') == 0


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/tokenize"])
def test_other_paths_are_routed_too(echo_router: httpx.Client, path: str) -> None:
    assert echo_router.post(path, json={"model": "a"}).json()["path"] == path


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"", 400, None, None),
        (b"{", 400, None, None),
        (b"\xff\xfe", 400, None, None),
        (b"[" * 4000, 400, None, None),
        (b'{"x":' * 800, 400, None, None),
        (b'["model"]', 400, None, None),
        (b"null", 400, None, None),
        (b'{"model": "a"} x', 400, None, None),
        (b"{}", 400, "model", None),
        (b'{"model": null}', 400, "model", None),
        (b'{"model": ["a"]}', 400, "model", None),
        (b'{"model": ""}', 404, "model", "model_not_found"),
        (b'{"model": "b"}', 404, "model", "model_not_found"),
        (b'{"model": "a", "x": "' + b"y" * LIMIT_BYTES + b'"}', 413, None, None),
    ],
)
def test_bad_requests_get_one_clear_error(
    echo_router: httpx.Client, body: bytes, status: int, param: str | None, code: str | None
) -> None:
    answer = echo_router.post(CHAT, content=body)
    assert answer.status_code == status
    error = error_of(answer)
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"


@given(body=st.binary(max_size=64))
@settings(max_examples=50)
def test_hostile_bodies_never_reach_an_engine(echo_router: httpx.Client, body: bytes) -> None:
    assert echo_router.post(CHAT, content=body).status_code in (400, 404)


def test_a_body_without_a_length_is_limited_too(echo_router: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(8):
            yield b" " * 1024

    assert echo_router.post(CHAT, content=chunks()).status_code == 413
    assert echo_router.post(CHAT, json={"model": "a"}).status_code == 418


def test_unknown_paths_and_methods_get_errors_in_the_same_form(echo_router: httpx.Client) -> None:
    unknown, wrong = echo_router.post("/v1/load_lora_adapter"), echo_router.get(CHAT)
    assert (unknown.status_code, wrong.status_code) == (404, 405)
    assert error_of(unknown) and error_of(wrong)


def test_lists_models(echo_router: httpx.Client) -> None:
    listed = echo_router.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["a", "org/b"]
    assert all(model["object"] == "model" for model in listed["data"])
    assert echo_router.get("/v1/models/org/b").json()["id"] == "org/b"
    assert echo_router.get("/v1/models/c").status_code == 404


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.READY])
def test_an_engine_that_is_not_ready_answers_503_at_once(phase: Phase) -> None:
    with routing(FakeBackend("a", phase=phase)) as client:
        answer = client.post(CHAT, json={"model": "a"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
        error = error_of(answer)
        assert error["code"] == "engine_unavailable" and str(phase) in error["message"]
        assert metric(client, 'gpupool_requests_total{code="503",model="a"}') == 1


def test_health_status_and_page() -> None:
    a, b = FakeBackend("a"), FakeBackend("b", phase=Phase.STARTING)
    with routing(a, b, status=make_status([model_status("a", 7, [0.25])])) as client:
        assert (answer := client.get("/health")).status_code == 503
        assert answer.json()["engines"] == {"a": "ready", "b": "starting"}
        b.phase = Phase.READY
        assert client.get("/health").status_code == 200
        status = client.get("/status").json()
        assert status["daemon"]["models"][0]["swap_in_s"] == [0.25]
        assert [engine["name"] for engine in status["engines"]] == ["a", "b"]
        assert status["engines"][0]["cold_start_s"] == 10.0
        assert (page := client.get("/")).headers["content-type"].startswith("text/html")
        assert "250.0 ms" in page.text
        assert metric(client, 'gpupool_swap_ins_total{model="a"}') == 1
    with routing(a) as client:
        assert client.get("/status").json()["daemon"] is None
        assert client.get("/").status_code == 200


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
