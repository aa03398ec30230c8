"""What is told of daemons and engines: metrics, and the page for people."""

from __future__ import annotations

import msgspec
from fake_pool import make_status, model_status
from hypothesis import given
from hypothesis import strategies as st

from gpupool.daemon.status import Moved
from gpupool.serve import status_page
from gpupool.serve.lifecycle import Phase
from gpupool.serve.metrics import Metrics, new_samples
from gpupool.serve.report import EngineReport


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 20))
def test_each_swap_in_is_observed_once(seen: int, count: int, held: int) -> None:
    last = [float(n) for n in range(count)][-held:] if held else []
    fresh, samples = new_samples(seen, count, last)
    assert fresh == (count - seen if count >= seen else count)
    assert list(samples) == last[len(last) - min(fresh, len(last)) :]


def report(name: str, phase: Phase = Phase.READY) -> EngineReport:
    return EngineReport(name, str(phase), 1, 2, 12.5, 3, 0.0, "<why>")


def test_metrics_of_the_daemon_survive_a_restart_of_the_worker() -> None:
    metrics = Metrics()
    for pid, samples in ((1, [0.1]), (1, [0.1, 0.2]), (1, [0.1, 0.2]), (2, [0.3, 0.4, 0.5])):
        metrics.take_status(make_status([model_status("a", pid, samples)]))
    text = metrics.render([report("a")]).decode()
    assert 'gpupool_swap_ins_total{model="a"} 5.0' in text
    assert 'gpupool_swap_in_seconds_count{model="a"} 5.0' in text
    assert 'gpupool_pages{state="free"} 95.0' in text
    assert 'gpupool_engine_restarts_total{model="a"} 3.0' in text
    assert 'gpupool_engine_up{model="a"} 1.0' in text


def test_metrics_tell_what_is_parked() -> None:
    metrics = Metrics()
    for pid, read_bytes, read_s in ((1, 100, 0.5), (1, 300, 0.75), (2, 50, 0.25)):
        status = msgspec.structs.replace(
            model_status("a", pid), parked_bytes=7, read_back_bytes=read_bytes, read_back_s=read_s
        )
        metrics.take_status(make_status([status]))
    text = metrics.render([]).decode()
    assert 'gpupool_parked_bytes{model="a"} 7.0' in text
    assert 'gpupool_read_back_bytes_total{model="a"} 350.0' in text
    assert 'gpupool_read_back_seconds_total{model="a"} 1.0' in text


def test_metrics_tell_what_was_wrong_in_memory() -> None:
    metrics = Metrics()
    for pid, recopied, unmarked, damaged in ((1, 10, 100, 1), (1, 30, 700, 1), (2, 4, 5, 2)):
        status = msgspec.structs.replace(
            model_status("a", pid),
            recopied_bytes=recopied,
            unmarked_bytes=unmarked,
            damaged=damaged,
        )
        metrics.take_status(make_status([status]))
    text = metrics.render([]).decode()
    assert 'gpupool_recopied_bytes_total{model="a"} 34.0' in text
    assert 'gpupool_unmarked_bytes_total{model="a"} 705.0' in text
    assert 'gpupool_damaged_swap_ins_total{model="a"} 3.0' in text


def test_metrics_tell_what_went_over_the_link_and_how_fast() -> None:
    metrics = Metrics()
    # The last is of the same process, which has joined anew.
    moved = (1, 10, 1, 0), (1, 30, 5, 0), (2, 4, 5, 2), (2, 4, 6, 2), (2, 1, 0, 0)
    for pid, moved_in, ahead, out in moved:
        status = msgspec.structs.replace(
            model_status("a", pid),
            moved_in=Moved(moved_in, moved_in / 8),
            moved_ahead=Moved(ahead, ahead / 4),
            moved_out=Moved(out, out / 2),
            moved_blocks_in=Moved(ahead, ahead / 2),
            moved_blocks_out=Moved(moved_in, moved_in / 4),
        )
        metrics.take_status(make_status([status]))
    text = metrics.render([]).decode()
    for way, moved_bytes, moving_s in (
        ("in", 35.0, 4.375),
        ("ahead", 11.0, 2.75),
        ("out", 2.0, 1.0),
        ("blocks_in", 11.0, 5.5),
        ("blocks_out", 35.0, 8.75),
    ):
        assert f'gpupool_moved_bytes_total{{model="a",way="{way}"}} {moved_bytes}' in text
        assert f'gpupool_moving_seconds_total{{model="a",way="{way}"}} {moving_s}' in text


def test_status_page_escapes_names() -> None:
    page = status_page.render(
        [make_status([model_status("<a>", 1, [0.001, 0.003])])], [report("<a>"), report("b")]
    )
    assert "<a>" not in page and "&lt;a&gt;" in page and "&lt;why&gt;" in page
    assert "2.0 ms" in page and "96 MiB" in page and "12.5 s" in page
    assert "does not answer" in status_page.render([None], [report("b")])


def test_what_several_devices_tell_is_added_up() -> None:
    first, second = (make_status([model_status("a", pid, [0.1] * pid)]) for pid in (1, 2))
    page = status_page.render([first, None, second], [report("a")])
    assert page.count("Device host") == 2 and page.count("does not answer") == 1
    metrics = Metrics()
    for _ in range(2):  # told twice, counted once
        metrics.take_status(first)
        metrics.take_status(second, 1)
    text = metrics.render([report("a")]).decode()
    assert 'gpupool_swap_ins_total{model="a"} 3.0' in text
    assert 'gpupool_pages{state="free"} 190.0' in text
    assert f'gpupool_footprint_bytes{{model="a"}} {2 * 96 * (1 << 20) / 1e8}' in text
