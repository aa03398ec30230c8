"""Errors in the form that OpenAI's API gives them, which its clients understand."""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


def error_body(
    message: str, kind: str, *, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """`{"error": {...}}`, as a response's body or as an event in a stream."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def invalid_request(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> JSONResponse:
    """The client must change its request."""
    # The rest of a body that is too large is never read: the connection cannot be used again.
    headers = {"connection": "close"} if status == 413 else None
    return JSONResponse(
        error_body(message, INVALID_REQUEST, code=code, param=param), status, headers
    )


def model_not_found(name: str) -> JSONResponse:
    """No engine serves `name`."""
    return invalid_request(
        404,
        f"The model `{name}` does not exist; GET /v1/models lists those that do.",
        code="model_not_found",
        param="model",
    )


def engine_unavailable(name: str, state: str, retry_after_s: float) -> JSONResponse:
    """The engine of `name` does not answer now."""
    message = f"The model `{name}` cannot answer now: its engine is {state}. Try again later."
    return JSONResponse(
        error_body(message, SERVER_ERROR, code="engine_unavailable"),
        503,
        {"retry-after": str(max(1, math.ceil(retry_after_s)))},
    )


def overloaded(name: str) -> JSONResponse:
    """A request for `name` waited for as long as it may, and its model had no turn."""
    message = f"The model `{name}` had no turn in time: the pool is overloaded. Try again later."
    return JSONResponse(
        error_body(message, SERVER_ERROR, code="overloaded"), 503, {"retry-after": "1"}
    )


def engine_died(name: str) -> dict[str, Any]:
    """The engine of `name` died while it worked on the request."""
    message = f"The engine of the model `{name}` died while it answered. Send the request again."
    return error_body(message, SERVER_ERROR, code="engine_died")
