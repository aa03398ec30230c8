"""The router in front of fake engines, over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fake_pool import make_status, model_status
from hypothesis import given, settings
from hypothesis import strategies as st
from router_bench import CHAT, LIMIT_BYTES, FakeBackend, error_of, metric, routing
from serving import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gpupool.serve.lifecycle import Phase


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
