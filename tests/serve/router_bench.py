"""A router in front of fake engines, and what tests ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from serving import serving

from gpupool.daemon.protocol import Status
from gpupool.serve.lifecycle import Phase
from gpupool.serve.metrics import Metrics
from gpupool.serve.report import EngineReport
from gpupool.serve.router import Announcer, Router

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
def routing(
    *backends: FakeBackend,
    status: Status | None = None,
    more: Sequence[Status | None] = (),
    announcer: Announcer | None = None,
    on_router: Callable[[Router], None] = lambda _: None,
) -> Iterator[httpx.Client]:
    async def ask_statuses() -> list[Status | None]:
        return [status, *more]

    router = Router(
        backends,
        client=httpx.AsyncClient(timeout=None, trust_env=False),
        metrics=Metrics(),
        ask_statuses=ask_statuses,
        max_body_bytes=LIMIT_BYTES,
        announcer=announcer,
    )
    on_router(router)
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
