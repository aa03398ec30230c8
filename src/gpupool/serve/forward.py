"""Sends one request on to an engine and its answer back, as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Protocol

import anyio
import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from gpupool.serve.events import EventAligner
from gpupool.serve.lifecycle import Phase
from gpupool.serve.openai_errors import engine_died, overloaded

# The client's side went away before the answer was complete: no HTTP status, but widely used.
CLIENT_CLOSED = 499

Headers = list[tuple[bytes, bytes]]

# The engine calls a request by a name that has this in it.
REQUEST_ID_HEADER = b"x-request-id"
_CLIENTS_NAME_MAX = 64

# Never part of generated text: there its quotes are escaped.
_ERROR_EVENT = b'data: {"error"'

# These speak of one connection, not of the message (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer"
    b" transfer-encoding upgrade".split()
)
# Written anew on either side. `expect` is already answered by our own server, and the key that an
# engine asks for is the router's.
_REQUEST_OWN = frozenset({b"host", b"content-length", b"expect", b"authorization"})
_RESPONSE_OWN = frozenset({b"content-length", b"date", b"server"})


class Backend(Protocol):
    """What forwarding needs to know of an engine."""

    @property
    def name(self) -> str:
        """The `model` that requests name."""

    @property
    def phase(self) -> Phase:
        """Requests are sent on only while it is ready."""

    @property
    def base_url(self) -> str:
        """Where its server answers, without a path."""

    async def is_sound(self) -> bool:
        """Whether it still is healthy after it failed a request."""


def end_to_end(headers: Iterable[tuple[bytes, bytes]], own: frozenset[bytes]) -> Headers:
    """The headers that are passed on: neither hop-by-hop, nor named by `connection`, nor `own`."""
    lowered = [(name.lower(), value) for name, value in headers]
    named = {
        token.strip().lower()
        for name, value in lowered
        if name == b"connection"
        for token in value.split(b",")
    }
    dropped = _HOP_BY_HOP | named | own
    return [(name, value) for name, value in lowered if name not in dropped]


class Forwarded(Response):
    """The answer of an engine. When the client goes away, so does the engine's request.

    Where there is a ``request_id`` the engine's name for the request has it in it, between dashes.
    """

    def __init__(
        self,
        backend: Backend,
        client: httpx.AsyncClient,
        request: Request,
        body: bytes,
        request_id: str,
        on_end: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._backend = backend
        self._client = client
        self._on_end = on_end
        self._is_counted = False
        self._scope: anyio.CancelScope | None = None
        self._given_up = False
        self._has_begun = self._has_tokens = False
        headers = end_to_end(request.headers.raw, _REQUEST_OWN)
        if not any(name == b"accept-encoding" for name, _ in headers):
            # httpx would ask for compression that this client cannot undo.
            headers.append((b"accept-encoding", b"identity"))
        if request_id:
            # Behind the client's own: two of his may be alike, or a part of each other.
            given = [value for name, value in headers if name == REQUEST_ID_HEADER and value][:1]
            headers = [header for header in headers if header[0] != REQUEST_ID_HEADER]
            names = [*(value[:_CLIENTS_NAME_MAX] for value in given), request_id.encode()]
            headers.append((REQUEST_ID_HEADER, b"-".join(names)))
        url = httpx.URL(backend.base_url + request.url.path, query=request.url.query.encode())
        self._upstream = client.build_request(request.method, url, headers=headers, content=body)

    def give_up(self) -> None:
        """Take the request back from its engine, and say so, unless a part of the answer is out."""
        if not self._has_tokens and not self._is_counted:
            self._given_up = True
            if self._scope is not None:
                self._scope.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Exchanges the messages; the ASGI entry."""
        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope

                async def until_disconnect() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    tasks.cancel_scope.cancel()

                tasks.start_soon(until_disconnect)
                if not self._given_up:
                    await self._exchange(scope, receive, send)
                tasks.cancel_scope.cancel()
            if self._given_up and not self._is_counted:
                await self._say_given_up(scope, receive, send)
        finally:
            self._count(CLIENT_CLOSED)

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._client.send(self._upstream, stream=True)
            try:
                if answer.headers.get("content-type", "").startswith("text/event-stream"):
                    await self._stream(answer, send)
                    return
                # Whole, so that an engine which dies meanwhile is an error, not half an answer.
                body = b"".join([chunk async for chunk in answer.aiter_raw()])
            finally:
                await answer.aclose()
            if answer.status_code == 500 and not await self._backend.is_sound():
                # A server whose core was killed says so in words of its own.
                raise httpx.ReadError("the engine died")
        except httpx.TransportError:
            self._count(502)
            await JSONResponse(engine_died(self._backend.name), 502)(scope, receive, send)
            return
        headers = end_to_end(answer.headers.raw, _RESPONSE_OWN)
        headers.append((b"content-length", str(len(body)).encode()))
        await _send_start(send, answer.status_code, headers)
        self._count(answer.status_code)
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _say_given_up(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._count(503)
        answer = overloaded(self._backend.name)
        if not self._has_begun:
            await answer(scope, receive, send)
            return
        event = b"data: " + bytes(answer.body) + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": False})

    async def _stream(self, answer: httpx.Response, send: Send) -> None:
        headers = end_to_end(answer.headers.raw, _RESPONSE_OWN)
        await _send_start(send, answer.status_code, headers)
        self._has_begun = True
        aligner, code = EventAligner(), answer.status_code
        try:
            async for chunk in answer.aiter_raw():
                ready = aligner.feed(chunk)
                error_at = ready.find(_ERROR_EVENT)
                # A server whose core was killed adds an event of its own, and then [DONE].
                died = error_at >= 0 and not await self._backend.is_sound()
                if good := ready[:error_at] if died else ready:
                    self._has_tokens = True
                    await send({"type": "http.response.body", "body": good, "more_body": True})
                if died:
                    raise httpx.ReadError("the engine died")
            last = aligner.rest()
        except httpx.TransportError:
            last = b"data: " + json.dumps(engine_died(self._backend.name)).encode() + b"\n\n"
            code = 502
        self._count(code)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _count(self, code: int) -> None:
        """Before the last byte is sent: a client that has its answer finds it counted."""
        if not self._is_counted:
            self._is_counted = True
            self._on_end(code)


async def _send_start(send: Send, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
