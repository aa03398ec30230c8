"""Figures in Prometheus's form: the router's own, the engines', and the daemon's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gpupool.serve.lifecycle import Phase
from gpupool.serve.report import EngineReport

if TYPE_CHECKING:
    from gpupool.daemon.status import ModelStatus, Status

_SWAP_IN_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)


def new_samples(seen: int, count: int, last: Sequence[float]) -> tuple[int, Sequence[float]]:
    """How many samples came since `seen` of them were known, and those still held in `last`.

    `count` is of all samples; one smaller than `seen` means that counting began anew.
    """
    fresh = count - seen if count >= seen else count
    return fresh, last[len(last) - min(fresh, len(last)) :]


class Metrics:
    """One registry, apart from the process's global one. What daemons tell is added up."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._statuses: dict[int, Status] = {}
        self._seen: dict[tuple[int, str], ModelStatus] = {}
        self._requests = Counter(
            "gpupool_requests",
            "Requests answered, by model and HTTP status; 499 is a client that left",
            ["model", "code"],
            registry=registry,
        )
        self._in_flight = Gauge(
            "gpupool_requests_in_flight", "Requests being answered", ["model"], registry=registry
        )
        self._swap_ins = Counter(
            "gpupool_swap_ins", "Times a model became resident", ["model"], registry=registry
        )
        self._swap_in_s = Histogram(
            "gpupool_swap_in_seconds",
            "From the lease to memory that is ready",
            ["model"],
            buckets=_SWAP_IN_BUCKETS_S,
            registry=registry,
        )
        self._recopied_bytes = Counter(
            "gpupool_recopied_bytes",
            "What arrived wrong in swap-ins, and right at a second attempt",
            ["model"],
            registry=registry,
        )
        self._unmarked_bytes = Counter(
            "gpupool_unmarked_bytes",
            "What swap-outs found written on the device although nobody had said so",
            ["model"],
            registry=registry,
        )
        self._moved_bytes = Counter(
            "gpupool_moved_bytes",
            "What swaps copied: in, in ahead of use, or out; and KV blocks, in or out",
            ["model", "way"],
            registry=registry,
        )
        self._moving_s = Counter(
            "gpupool_moving_seconds",
            "Time in which they did, so that both tell how fast",
            ["model", "way"],
            registry=registry,
        )
        self._damaged = Counter(
            "gpupool_damaged_swap_ins",
            "Times that memory was not what was saved, so that a model left or did not come",
            ["model"],
            registry=registry,
        )
        self._pages = Gauge("gpupool_pages", "Pages by state", ["state"], registry=registry)
        self._page_bytes = Gauge("gpupool_page_bytes", "Size of a page", registry=registry)
        self._host_bytes = Gauge("gpupool_host_bytes", "Host memory handed out", registry=registry)
        self._footprint = Gauge(
            "gpupool_footprint_bytes",
            "What a model needs to be resident",
            ["model"],
            registry=registry,
        )
        self._held = Gauge(
            "gpupool_held_bytes",
            "What a model has of it, also while it is out",
            ["model"],
            registry=registry,
        )
        self._parked = Gauge(
            "gpupool_parked_bytes",
            "What of a model's images is in a file and not in host memory",
            ["model"],
            registry=registry,
        )
        self._read_back_bytes = Counter(
            "gpupool_read_back_bytes",
            "Images that came back from files",
            ["model"],
            registry=registry,
        )
        self._read_back_s = Counter(
            "gpupool_read_back_seconds",
            "Time that images took to come back from files",
            ["model"],
            registry=registry,
        )
        self._up = Gauge(
            "gpupool_engine_up", "1 when the engine answers", ["model"], registry=registry
        )
        self._cold_start_s = Gauge(
            "gpupool_engine_cold_start_seconds",
            "The engine's last start",
            ["model"],
            registry=registry,
        )
        self._restarts = Gauge(
            "gpupool_engine_restarts_total",
            "Restarts after a death",
            ["model"],
            registry=registry,
        )

    def begin_request(self, model: str) -> None:
        """A request is sent on to the engine of `model`."""
        self._in_flight.labels(model).inc()

    def end_request(self, model: str, code: int) -> None:
        """The request that began is answered, or given up."""
        self._in_flight.labels(model).dec()
        self.count_request(model, code)

    def count_request(self, model: str, code: int) -> None:
        """A request was answered with `code`; `model` is empty when no engine serves it."""
        self._requests.labels(model, str(code)).inc()

    def take_status(self, status: Status, rank: int = 0) -> None:
        """Takes over the figures of the daemon of one rank's device. Each swap-in counts once."""
        self._statuses[rank] = status
        every = self._statuses.values()
        self._pages.labels("free").set(sum(each.pages_free for each in every))
        self._pages.labels("granted").set(sum(each.pages_granted for each in every))
        self._pages.labels("fenced").set(sum(each.pages_fenced for each in every))
        self._page_bytes.set(status.page_bytes)
        self._host_bytes.set(sum(each.host_bytes for each in every))
        for model in status.models:
            key = rank, model.name
            seen = self._seen.get(key)
            if seen is not None and seen.pid != model.pid:
                seen = None  # another process, which counts from the start
            self._seen[key] = model
            fresh, samples = new_samples(
                seen.swap_ins if seen else 0, model.swap_ins, model.swap_in_s
            )
            self._swap_ins.labels(model.name).inc(fresh)
            for sample in samples:
                self._swap_in_s.labels(model.name).observe(sample)
            wrong_bytes, _ = new_samples(
                seen.recopied_bytes if seen else 0, model.recopied_bytes, ()
            )
            self._recopied_bytes.labels(model.name).inc(wrong_bytes)
            unmarked_bytes, _ = new_samples(
                seen.unmarked_bytes if seen else 0, model.unmarked_bytes, ()
            )
            self._unmarked_bytes.labels(model.name).inc(unmarked_bytes)
            self._take_moved(model, seen)
            damaged, _ = new_samples(seen.damaged if seen else 0, model.damaged, ())
            self._damaged.labels(model.name).inc(damaged)
            back = (seen.read_back_bytes, seen.read_back_s) if seen else (0, 0.0)
            if model.read_back_bytes >= back[0]:
                self._read_back_bytes.labels(model.name).inc(model.read_back_bytes - back[0])
                self._read_back_s.labels(model.name).inc(max(0.0, model.read_back_s - back[1]))
            ranks = [m for each in every for m in each.models if m.name == model.name]
            self._parked.labels(model.name).set(sum(m.parked_bytes for m in ranks))
            self._footprint.labels(model.name).set(sum(m.footprint_bytes for m in ranks))
            self._held.labels(model.name).set(sum(m.held_bytes for m in ranks))

    def _take_moved(self, model: ModelStatus, seen: ModelStatus | None) -> None:
        for way in ("in", "ahead", "out", "blocks_in", "blocks_out"):
            now, was = (getattr(status, f"moved_{way}", None) for status in (model, seen))
            assert now is not None
            goes_on = was is not None and was.bytes <= now.bytes and was.seconds <= now.seconds
            was_bytes, was_s = (was.bytes, was.seconds) if was and goes_on else (0, 0.0)
            self._moved_bytes.labels(model.name, way).inc(now.bytes - was_bytes)
            self._moving_s.labels(model.name, way).inc(now.seconds - was_s)

    def render(self, reports: Iterable[EngineReport]) -> bytes:
        """The text that Prometheus reads."""
        for report in reports:
            self._up.labels(report.name).set(report.state == Phase.READY)
            self._restarts.labels(report.name).set(report.restarts)
            if report.cold_start_s is not None:
                self._cold_start_s.labels(report.name).set(report.cold_start_s)
        text: bytes = generate_latest(self._registry)
        return text
