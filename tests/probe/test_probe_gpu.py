"""Every part of the probe over a real C interface: what it says of memory is true of the stand-in.

How fast a GPU is cannot be seen here, and the report says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from probe_command import ROOT, Done, probe

Asked = Callable[..., Done]


def answer_of(done: Done, part: str) -> dict[str, Any]:
    outcome: dict[str, Any] = done.report["parts"][part]
    assert outcome["status"] == "answered", outcome
    answer: dict[str, Any] = outcome["answer"]
    return answer


def test_every_part_has_an_answer(whole: Done) -> None:
    statuses = {part: each["status"] for part, each in whole.report["parts"].items()}
    assert statuses.pop("overlap_mps") in ("answered", "not answered")
    assert set(statuses.values()) == {"answered"}, whole.said
    assert whole.code == 0


def test_nobody_takes_it_for_a_gpu(whole: Done) -> None:
    assert whole.report["is_gpu"] is False
    summary = whole.said[whole.said.index("!!!") :].splitlines()
    for banner in (summary[:3], summary[-3:]):
        assert "NOT A GPU" in banner[1] and "nothing about any GPU" in banner[1]
    assert "stand-in" in answer_of(whole, "device")["name"]


def test_bytes_of_another_process(whole: Done) -> None:
    answer = answer_of(whole, "visible")
    rows = [row for row in answer.values() if isinstance(row, dict)]
    assert len(rows) == 6
    assert all(set(row.values()) == {0} for row in rows)


def test_a_page_outlives_its_creator(whole: Done) -> None:
    answer = answer_of(whole, "lifetime")
    for when in ("imported_after_its_death", "mapped_before_its_death"):
        assert answer[when] == "all bytes are there"


def test_pages_without_a_context(whole: Done) -> None:
    answer = answer_of(whole, "no_context")
    for call in ("create", "export", "import", "release"):
        assert answer[call]["answer"] == "CUDA_SUCCESS"
    contexts = {name: there for name, there in answer.items() if name.startswith("context_")}
    assert len(contexts) == 4 and not any(contexts.values())
    assert answer["wrong_bytes_in_the_next_process_with_a_context"] == 0


def test_a_context_is_seen_where_there_is_one(stand_in: Path) -> None:
    program = (
        "import sys; from gpu_probe.device import Device, Pages, Settings\n"
        "settings = Settings(sys.argv[1], 1 << 26, 0.1, 0)\n"
        "print(Pages(settings).has_context(), Device(settings).has_context())"
    )
    command = [sys.executable, "-c", program, str(stand_in)]
    path = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
    done = subprocess.run(command, env=path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True"], done.stderr


@pytest.mark.parametrize(
    ("call", "asked_before"),
    [
        ("cuMemCreate", []),
        ("cuMemExportToShareableHandle", ["create"]),
        ("cuMemImportFromShareableHandle", ["create", "export"]),
    ],
)
def test_a_refusal_without_a_context_is_an_answer(
    asked: Asked, call: str, asked_before: list[str]
) -> None:
    answer = answer_of(asked("--parts", "no_context", GPUPOOL_STANDIN_FAIL=call), "no_context")
    rows = {name: row["answer"] for name, row in answer.items() if isinstance(row, dict)}
    assert [name for name in rows if rows[name] == "CUDA_SUCCESS"] == asked_before
    assert list(rows.values())[-1] == f"{call} answered CUDA_ERROR_NO_DEVICE"
    assert answer["context_after"] is False


def test_calls_over_many_mappings(whole: Done) -> None:
    answer = answer_of(whole, "calls")
    assert answer["a_call_in_a_forked_child"] == "CUDA_ERROR_NOT_INITIALIZED"
    refused = {
        "one_access_over_a_gap_at_the_end",
        "one_unmap_over_a_gap_at_the_end",
        "unmap_of_half_a_page",
    }
    rows = {name: row for name, row in answer.items() if isinstance(row, dict)}
    assert len(rows) == 8
    for name, row in rows.items():
        expected = "CUDA_ERROR_INVALID_VALUE" if name in refused else "CUDA_SUCCESS"
        assert row["answer"] == expected, name
        assert row.get("first_half_is_whole", True), name


def test_what_is_read_only_stays_as_it_is(whole: Done) -> None:
    answer = answer_of(whole, "read_only")
    assert {answer[change]["answer"] for change in ("to_reading", "to_writing")} == {"CUDA_SUCCESS"}
    for write in ("kernel", "fill", "copy"):
        attempt = answer[f"{write}_in_another_process"]
        assert attempt["wrong_words_read_in_two_processes"] == 0
        assert answer[f"bytes_changed_by_{write}"] == 0
    # The stand-in's kernels are the processor's, which stops a process that writes there.
    assert answer["kernel_in_another_process"]["the_write"] == "the other process ended with -11"
    assert "INVALID_VALUE" in answer["copy_in_another_process"]["the_write"]


def test_every_measure_is_a_figure(whole: Done) -> None:
    for part in ("overlap", "copies", "mapping", "stalls", "registration"):
        rows = [row for row in answer_of(whole, part).values() if isinstance(row, dict)]
        assert rows
        for row in rows:
            assert all(isinstance(value, int | float) and value >= 0 for value in row.values())


def test_a_driver_without_kernels(asked: Asked) -> None:
    done = asked("--parts", "visible,lifetime", GPUPOOL_STANDIN_WITHOUT="cuModuleLoadData")
    missing = done.report["parts"]["visible"]
    assert missing["status"] == "not answered"
    assert "this driver has no cuModuleLoadData" in missing["why"]
    answer_of(done, "lifetime")
    assert done.code == 0


def test_what_the_driver_refuses_is_said_with_its_name(asked: Asked) -> None:
    parts = "device,calls,lifetime,mapping"
    done = asked("--parts", parts, GPUPOOL_STANDIN_FAIL="cuMemCreate")
    assert done.code == 1
    answer_of(done, "device")
    for part in parts.split(",")[1:]:
        outcome = done.report["parts"][part]
        assert outcome["status"] == "failed"
        assert "cuMemCreate answered CUDA_ERROR_NO_DEVICE" in outcome["why"]


def test_a_part_that_takes_too_long_is_ended(asked: Asked) -> None:
    # Two rates of five minutes, and what is behind has no time left.
    done = asked("--parts", "overlap,copies", "--seconds", "300", "--limit-s", "4")
    assert done.code == 1
    assert "it took more than its 4 s" in done.report["parts"]["overlap"]["why"]
    behind = done.report["parts"]["copies"]
    assert behind["status"] == "not answered" and "are over" in behind["why"]


def test_without_a_driver() -> None:
    done = probe("--library", "libcuda.so.none")
    assert done.code == 2
    assert "there is no GPU to ask" in done.said and "libcuda.so.none" in done.said


@pytest.mark.parametrize(
    "arguments",
    [("--parts", "overlap,nonsense"), ("--mib", "63"), ("--mib", "96"), ("--seconds", "0")],
)
def test_bad_input(arguments: tuple[str, ...]) -> None:
    done = probe(*arguments)
    assert done.code == 2
    assert arguments[0] in done.said
