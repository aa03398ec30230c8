"""The one address in front of all engines: an OpenAI-compatible HTTP application."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gpupool.serve import forward, openai_errors, status_page
from gpupool.serve.forward import Forwarded
from gpupool.serve.lifecycle import Phase
from gpupool.serve.metrics import Metrics
from gpupool.serve.report import EngineReport
from gpupool.serve.sizes import format_size

if TYPE_CHECKING:
    from gpupool.daemon.protocol import Status

# Sent on to the engine that the body's `model` names. vLLM's other paths, among them those that
# change an engine, are not reachable from here.
FORWARDED_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/tokenize",
    "/detokenize",
)
# Of these, what never reaches a model.
_WITHOUT_MODEL = frozenset(("/tokenize", "/detokenize"))
_BYTES_PER_TOKEN = 4
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Backend(forward.Backend, Protocol):
    """An engine as the router sees it."""

    @property
    def retry_after_s(self) -> float:
        """When to ask again while it is not ready."""

    def report(self) -> EngineReport:
        """Its state."""


class _Addressed(msgspec.Struct):
    """The part of a request's body that decides where it goes."""

    model: Any = msgspec.UNSET


class Announcer(Protocol):
    """Whom to tell of requests that are on their way to engines."""

    def announce(self, model: str, request_id: str, prompt_tokens: int) -> None:
        """One has come."""

    def over(self, request_id: str) -> None:
        """It is answered, or given up."""


class Router:
    """Routes by the body's `model`.

    `ask_statuses` gives the status of each device's daemon, None of one that does not answer.
    `announcer` is None where nobody goes by requests.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        client: httpx.AsyncClient,
        metrics: Metrics,
        ask_statuses: Callable[[], Awaitable[Sequence[Status | None]]],
        max_body_bytes: int,
        announcer: Announcer | None = None,
    ) -> None:
        self._backends = {backend.name: backend for backend in backends}
        self._client = client
        self._metrics = metrics
        self._ask_statuses = ask_statuses
        self._max_body_bytes = max_body_bytes
        self._announcer = announcer
        self._on_their_way: dict[str, Forwarded] = {}
        """Announced requests, by the names they were announced by."""
        self._created = int(time.time())

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [Route(path, self._forward, methods=["POST"]) for path in FORWARDED_PATHS]
        routes += [
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/health", self._health),
            Route("/status", self._status),
            Route("/metrics", self._metrics_text),
            Route("/", self._page),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    async def _forward(self, request: Request) -> Response:
        try:
            body = await self._read_body(request)
        except ClientDisconnect:
            return Response(status_code=forward.CLIENT_CLOSED)
        name, refusal = "", None
        if body is None:
            limit = format_size(self._max_body_bytes)
            refusal = openai_errors.invalid_request(
                413, f"The request's body is larger than the limit of {limit}; send less."
            )
        else:
            name, refusal = _address(body)
        backend = self._backends.get(name)
        if refusal is None and backend is None:
            refusal = openai_errors.model_not_found(name)
        if refusal is not None or backend is None or body is None:
            assert refusal is not None
            self._metrics.count_request("", refusal.status_code)
            return refusal
        if backend.phase is not Phase.READY:
            self._metrics.count_request(name, 503)
            return openai_errors.engine_unavailable(name, backend.phase, backend.retry_after_s)
        self._metrics.begin_request(name)
        announcer = None if request.url.path in _WITHOUT_MODEL else self._announcer
        request_id = "" if announcer is None else secrets.token_hex(16)

        def on_end(code: int) -> None:
            self._metrics.end_request(name, code)
            if announcer is not None:
                self._on_their_way.pop(request_id, None)
                announcer.over(request_id)

        forwarded = Forwarded(backend, self._client, request, body, request_id, on_end)
        if announcer is not None:
            self._on_their_way[request_id] = forwarded
            # Roughly: the engine will tell.
            announcer.announce(name, request_id, len(body) // _BYTES_PER_TOKEN)
        return forwarded

    def give_up(self, request_id: str) -> None:
        """The pool has no room for an announced request in time: it is taken back from its engine.

        Unless it has its answer by now, or a part of it.
        """
        if (forwarded := self._on_their_way.get(request_id)) is not None:
            forwarded.give_up()

    async def _read_body(self, request: Request) -> bytes | None:
        """The whole body, or None when it is larger than the limit, of which no more is read."""
        if int(request.headers.get("content-length", 0)) > self._max_body_bytes:
            return None
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                return None
        return bytes(body)

    async def _models(self, _: Request) -> Response:
        models = [self._describe(name) for name in self._backends]
        return JSONResponse({"object": "list", "data": models})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._backends:
            return openai_errors.model_not_found(name)
        return JSONResponse(self._describe(name))

    def _describe(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "gpupool"}

    async def _health(self, _: Request) -> Response:
        states = {report.name: report.state for report in self._reports()}
        ready = all(state == Phase.READY for state in states.values())
        return JSONResponse(
            {"status": "ok" if ready else "unavailable", "engines": states}, 200 if ready else 503
        )

    async def _status(self, _: Request) -> Response:
        statuses = await self._ask_statuses()
        content: dict[str, Any] = {"daemon": statuses[0], "engines": self._reports()}
        if len(statuses) > 1:
            content["devices"] = statuses
        return Response(msgspec.json.encode(content), media_type="application/json")

    async def _metrics_text(self, _: Request) -> Response:
        for rank, status in enumerate(await self._ask_statuses()):
            if status is not None:
                self._metrics.take_status(status, rank)
        text = self._metrics.render(self._reports())
        return Response(text, headers={"content-type": _TEXT})

    async def _page(self, _: Request) -> Response:
        return HTMLResponse(status_page.render(await self._ask_statuses(), self._reports()))

    def _reports(self) -> list[EngineReport]:
        return [backend.report() for backend in self._backends.values()]


def _address(body: bytes) -> tuple[str, JSONResponse | None]:
    """The model that the body names, or what is wrong with the body."""
    param: str | None = None
    try:
        model = msgspec.json.decode(body, type=_Addressed).model
    except msgspec.ValidationError:
        problem = "The request's body is not a JSON object."
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        problem = f"The request's body is not JSON: {error}."
    else:
        if isinstance(model, str):
            return model, None
        param = "model"
        problem = (
            "The request names no `model`; GET /v1/models lists them."
            if model is msgspec.UNSET
            else "The request's `model` is not a string."
        )
    return "", openai_errors.invalid_request(400, problem, param=param)


async def _http_error(_: Request, error: Exception) -> Response:
    """Unknown paths and methods, in OpenAI's form too."""
    assert isinstance(error, HTTPException)
    answer = openai_errors.invalid_request(error.status_code, f"{error.detail}.")
    answer.headers.update(error.headers or {})
    return answer
