"""Devices that are wanted elsewhere while an engine of several ranks waits for another device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_bench import PAGE_BYTES, Daemon, StartDaemon, until
from gang_process_bench import PAGES, MakeProcesses, processes_of


@pytest.fixture
def daemons(start_daemon: StartDaemon, directory: Path) -> list[Daemon]:
    """Two devices with room for one model; the first is given back within seconds."""
    return [
        start_daemon(
            socket_path=directory / f"{number}.sock",
            pages=PAGES,
            options=("--revoke-timeout-s", limit_s),
        )
        for number, limit_s in enumerate(("3", "600"))
    ]


@pytest.fixture
def make() -> Iterator[MakeProcesses]:
    with processes_of() as make:
        yield make


def test_who_waits_for_one_device_gives_another_up_once_and_is_not_killed_for_it(
    daemons: list[Daemon], make: MakeProcesses
) -> None:
    first, second = daemons
    long, short = (d.model("alone", weights=PAGES * PAGE_BYTES) for d in (second, first))
    engine = make(daemons, "m")
    long.do("enter")
    engine.start("enter")
    first.until_state("m", "resident")
    second.until_state("m", "waiting")

    short.do("enter")  # the engine has made room for it
    second.until_state("m", "out")
    short.do("leave")
    first.until_state("m", "resident")
    second.until_state("m", "waiting")

    short.start("enter")
    for _ in range(2):  # for longer than a model may take that is to leave
        first.until_state("m", "leaving")
        first.until_state("m", "resident")
    model = first.model_status("m")
    assert model is not None
    assert "waits for the devices of other ranks" in model.stays
    assert not any(refusal.model == "m" for refusal in first.status().refusals)

    long.do("leave")
    engine.answers()
    engine.do("fill", "runtime", 7)
    engine.do("leave")
    short.answer()  # nobody has to ask for it again
    short.do("leave")
    engine.do("enter")
    assert engine.do("values", "runtime") == [[7]] * 2
    engine.do("leave")
    until(lambda: second.status().pages_fenced == first.status().pages_fenced == 0)
