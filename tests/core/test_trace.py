"""Statistics and traces of a pool: the same figures as its swaps report."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pool_bench import BUDGET_PAGES, PAGE_BYTES, memory_of, pool_of, resident_model

from gpupool import Pool
from gpupool._core import FaultPlan, SwapReport
from gpupool.errors import DriverError, UsageError

FIRST_STREAM_TRACK = 1 << 22


def swaps(pool: Pool) -> tuple[list[SwapReport], list[SwapReport]]:
    """Two models that take turns, twice each; the reports of all swaps in and out."""
    models = [resident_model(pool, name, BUDGET_PAGES - 1) for name in ("a", 'b"\n')]
    for model in models:
        model.region("runtime", 5000)
    ins, outs = [], []
    for _ in range(2):
        for model in models:
            with model.resident():
                memory_of(model.regions("weights")[0])[:4] = b"1234"
            model.swap_out()
            assert model.last_swap_in is not None
            assert model.last_swap_out is not None
            ins.append(model.last_swap_in)
            outs.append(model.last_swap_out)
    return ins, outs


def events_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["traceEvents"]


def test_a_trace_shows_what_the_swaps_report(tmp_path: Path) -> None:
    pool = pool_of()
    with pool.trace(tmp_path / "%p.json"):
        ins, outs = swaps(pool)
    pool.close()
    path = tmp_path / f"{os.getpid()}.json"
    assert list(tmp_path.iterdir()) == [path]
    events = events_of(path)
    shown = [event for event in events if event["ph"] == "X"]
    spans = [event for event in shown if "cat" not in event]

    def ran(name: str) -> list[dict[str, Any]]:
        return [event for event in shown if event.get("cat") == "stream" and event["name"] == name]

    def total(events: list[dict[str, Any]]) -> int:
        return sum(event["args"]["bytes"] for event in events)

    assert total(ran("copy_to_device_digest")) == sum(report.copied_bytes for report in ins) > 0
    assert total(ran("copy_to_host")) == sum(report.copied_bytes for report in outs) > 0
    assert total(ran("fill")) == sum(report.filled_bytes for report in ins) > 0
    for direction, reports in (("swap in ", ins), ("swap out ", outs)):
        for name, own in (("a", reports[0::2]), ('b"\n', reports[1::2])):
            named = [span for span in spans if span["name"] == direction + name]
            assert [span["args"]["bytes"] for span in named] == [r.copied_bytes for r in own]
            for span, report in zip(named, own, strict=True):
                assert span["dur"] >= report.total_s * 1e6
    assert sum(span["name"] == "lease wait a" for span in spans) == 2
    # What a stream did during a swap is inside the swap's own slice.
    for copy in ran("copy_to_device_digest"):
        assert any(
            span["ts"] <= copy["ts"] and copy["ts"] + copy["dur"] <= span["ts"] + span["dur"] + 1e-3
            for span in spans
            if span["name"].startswith("swap in")
        )
    names = {
        event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    assert {event["tid"] for event in shown} == set(names)
    streams = {name for tid, name in names.items() if tid >= FIRST_STREAM_TRACK}
    assert streams == {f"host:0 stream {n}" for n in range(1, len(streams) + 1)}
    assert json.loads(path.read_text())["otherData"]["dropped"] == 0


def test_work_of_streams_names_its_call_and_how_long_it_was_queued(tmp_path: Path) -> None:
    pool = pool_of()
    model = pool.model("a")
    region = model.region("weights", PAGE_BYTES)
    small = [model.region("runtime", 4096 * (1 + n % 3)) for n in range(2)]
    other = [model.region("workspace", 5000)]
    with pool.trace(tmp_path / "t.json"):
        for _ in range(4):
            with model.resident(writes=True):
                pass
            model.swap_out()
    addresses = {hex(r.address): r.bytes for r in [region, *small, *other]}
    pool.close()
    shown = [event for event in events_of(tmp_path / "t.json") if event["ph"] == "X"]
    queued_us = []
    for name in ("copy_to_device_digest", "copy_to_host", "fill"):
        calls, ran = (
            [event for event in shown if event.get("cat") == kind and event["name"] == name]
            for kind in ("driver", "stream")
        )
        assert len(calls) == len(ran) > 2
        # Streams go side by side: of one place the work is in the order of the calls.
        for call, work in zip(
            sorted(calls, key=lambda event: (event["args"]["address"], event["ts"])),
            sorted(ran, key=lambda event: (event["args"]["address"], event["ts"])),
            strict=True,
        ):
            assert set(call["args"]) == {"address", "bytes"}
            assert set(work["args"]) == {"address", "bytes", "queued_us"}
            for key in ("address", "bytes"):
                assert call["args"][key] == work["args"][key]
            # From when the call began until the stream came to it.
            assert work["args"]["queued_us"] == pytest.approx(work["ts"] - call["ts"], abs=2e-3)
            queued_us.append(work["args"]["queued_us"])
        copied = {event["args"]["address"]: event["args"]["bytes"] for event in ran}
        if name == "copy_to_host":
            whole = {hex(r.address): r.bytes for r in [region, *small]}
            assert copied == whole
        assert any(address in addresses for address in copied)
    assert min(queued_us) >= 0
    assert max(queued_us) > 0
    mapped = [event for event in shown if event["name"] == "map"]
    assert {event["args"]["address"] for event in mapped} == set(addresses)
    assert {event["args"]["bytes"] for event in mapped} == {PAGE_BYTES}


def test_a_failed_call_has_its_status(tmp_path: Path) -> None:
    plan = FaultPlan()
    pool = pool_of(plan=plan)
    model = resident_model(pool, "a")
    with pool.trace(tmp_path / "t.json"):
        plan.arm(1, 2)
        with pytest.raises(DriverError), model.resident():
            pass
        plan.disarm()
        with model.resident():
            pass
    pool.close()
    failed = [
        event for event in events_of(tmp_path / "t.json") if "status" in event.get("args", {})
    ]
    assert [(event["name"], event["args"]["status"]) for event in failed] == [("page_create", 2)]


def test_statistics_are_the_sum_of_the_reports() -> None:
    pool = pool_of()
    ins, outs = swaps(pool)
    seen = pool.statistics()
    for index, model in enumerate(seen.models):
        for count, reports in ((model.swap_ins, ins[index::2]), (model.swap_outs, outs[index::2])):
            assert count.swaps == 2
            assert count.copied_bytes == sum(report.copied_bytes for report in reports)
            assert count.filled_bytes == sum(report.filled_bytes for report in reports)
            assert count.seconds == pytest.approx(sum(report.total_s for report in reports))
        assert model.needed_bytes == BUDGET_PAGES * PAGE_BYTES
        assert model.held_bytes == 0
    assert [model.name for model in seen.models] == ["a", 'b"\n']
    assert seen.driver.to_device_bytes == sum(report.copied_bytes for report in ins)
    assert seen.driver.to_host_bytes == sum(report.copied_bytes for report in outs)
    assert seen.driver.filled_bytes == sum(report.filled_bytes for report in ins)
    # One for each swap-out: also where what is clean went ahead of the rest.
    assert seen.driver.calls["context_synchronize"].calls == 4
    assert seen.driver.calls["context_synchronize"].seconds > 0
    assert seen.driver.mapped_bytes == 0
    assert (seen.pages.total, seen.pages.created, seen.pages.free) == (BUDGET_PAGES,) * 3
    assert json.loads(json.dumps(seen.as_json())) == json.loads(
        json.dumps(dataclasses.asdict(seen))
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.page_bytes = 0  # type: ignore[misc]
    pool.close()
    end = pool.statistics()
    assert end.models == ()
    assert end.driver.mapped_bytes == 0


def test_a_resident_model_holds_its_pages() -> None:
    pool = pool_of()
    model = resident_model(pool, "a", 3)
    with model.resident():
        seen = pool.statistics()
        assert seen.models[0].held_bytes == 3 * PAGE_BYTES
        assert seen.driver.mapped_bytes == 3 * PAGE_BYTES
        assert seen.pages.free == BUDGET_PAGES - 3
    pool.close()


def test_a_full_trace_says_what_it_dropped(tmp_path: Path) -> None:
    pool = pool_of()
    with pool.trace(tmp_path / "t.json", max_events=20):
        swaps(pool)
    document = json.loads((tmp_path / "t.json").read_text())
    assert document["otherData"]["events"] == 20
    dropped = document["otherData"]["dropped"]
    assert dropped > 50
    assert any(
        event["name"] == f"{dropped} events were dropped"
        for event in events_of(tmp_path / "t.json")
    )


def test_one_trace_at_a_time_and_only_where_there_is_a_folder(tmp_path: Path) -> None:
    pool = pool_of()
    with pytest.raises(UsageError, match="make its folder first"), pool.trace("/nowhere/t.json"):
        pass
    with (
        pool.trace(tmp_path / "a"),
        pytest.raises(UsageError, match="traced already"),
        pool.trace(tmp_path / "b"),
    ):
        pass
    (tmp_path / "c").mkdir()
    with pytest.raises(OSError), pool.trace(tmp_path / "c"):
        pass
    # What could not be written left nothing behind, and the next trace works.
    with pool.trace(tmp_path / "d"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]


PROGRAM = """
import gc, multiprocessing, os, sys
import gpupool

def work(name):
    pool = gpupool.Pool(device="host", budget_bytes=1 << 22, page_bytes=1 << 21)
    model = pool.model(name)
    model.region("weights", 1 << 21)
    with model.resident():
        pass
    pool.close()
    del pool, model
    gc.collect()  # the device is closed: its threads would be missing in a forked child

if __name__ == "__main__":
    work("parent")
    work("again")
    for how in ("fork", "spawn"):
        child = multiprocessing.get_context(how).Process(target=work, args=(how,))
        child.start()
        child.join()
        assert child.exitcode == 0
        print(how, child.pid)
    if os.fork() == 0:
        sys.exit(0)  # writes nothing
    os.wait()
    print("parent", os.getpid())
"""


def test_the_switch_traces_every_process_that_opens_a_device(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    folder = tmp_path / "traces"
    folder.mkdir()
    environment = {**os.environ, "GPUPOOL_TRACE": str(folder / "swap-%p.json")}
    ran = subprocess.run(
        [sys.executable, str(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stderr == ""
    pids = dict(line.split() for line in ran.stdout.splitlines())
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"swap-{pid}.json" for pid in pids.values()
    )
    for name, pid in pids.items():
        shown = {event["name"] for event in events_of(folder / f"swap-{pid}.json")}
        expected = {"parent", "again"} if name == "parent" else {name}
        assert {n.removeprefix("swap in ") for n in shown if n.startswith("swap in ")} == expected


def test_a_switch_to_nowhere_is_refused_when_the_device_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GPUPOOL_TRACE", "/nowhere/t.json")
    with pytest.raises(UsageError, match="make its folder first"):
        pool_of()
