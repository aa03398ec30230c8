"""Files of what was measured: what is written is read, and simulated as it was measured."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.cli import main
from gpupool.errors import UsageError
from gpupool.schedule.costs import Costs
from gpupool.schedule.work import Batch, Device
from gpupool.simulate.assumptions import HONEST
from gpupool.simulate.checkpoints import CHECKPOINTS, Checkpoint, SwitchTimes
from gpupool.simulate.holding import Sizes
from gpupool.simulate.profile_file import COLUMNS, NOTHING_MEASURED, add_to_profiles, read_profiles
from gpupool.simulate.profiles import Fit, Point, fit_points
from gpupool.simulate.residency import ResidentLoader
from gpupool.simulate.simulation import Hardware, simulate
from gpupool.simulate.trace import Arrival

pytest.importorskip("numpy")
SIZES = Checkpoint("own", 2e9, 1000, 512, SwitchTimes(0.5, 1e-9, 2e-9))
FIT = Fit((0.01, 1e-5, 0.0), (0.01, 0.0, 1e-4))
LINK = float(1 << 34)  # of which multiples and fractions are exact

seconds = st.floats(1e-6, 1e3)
points = st.lists(
    st.builds(
        Point,
        st.integers(1, 100_000),
        st.integers(1, 1000),
        seconds,
        seconds,
        st.integers(2, 9),
    ),
    max_size=20,
).map(lambda found: [Point(16 * n, n, 0.1 * n, 0.1, 1) for n in range(1, 6)] + found)
checkpoints = st.builds(
    Checkpoint,
    st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20),
    st.floats(1, 1e14),
    st.integers(1, 10**9),
    st.integers(1, 10**7),
    st.none() | st.builds(SwitchTimes, st.just(0.0) | seconds, st.just(0.0) | seconds, seconds),
)


@given(st.lists(st.tuples(st.sampled_from("ab"), checkpoints, points), min_size=1, max_size=4))
@settings(max_examples=50)
def test_what_is_written_is_read_and_the_rest_stays(
    written: list[tuple[str, Checkpoint, list[Point]]],
) -> None:
    latest = {(one.name, gpu): (one, found) for gpu, one, found in written}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profiles.csv"
        for gpu, one, found in written:
            add_to_profiles(path, gpu, one, found)
        assert [entry.name for entry in Path(folder).iterdir()] == ["profiles.csv"]
        read = read_profiles(path)
    assert read.checkpoints == {key: one for key, (one, _) in latest.items()}
    assert read.fits == {key: fit_points(found)[0] for key, (_, found) in latest.items()}


def test_a_file_that_is_no_profile_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "letter.csv"
    path.write_text("dear,reader\n")
    with pytest.raises(UsageError, match="no column"):
        add_to_profiles(path, "g", SIZES, [])
    assert path.read_text() == "dear,reader\n"
    assert list(tmp_path.iterdir()) == [path]


def test_columns_and_links_of_a_file_stay(tmp_path: Path) -> None:
    target, path = tmp_path / "target.csv", tmp_path / "profiles.csv"
    rows = [f"old,g,{16 * n},{n},0.1,0.1,mine\n" for n in range(1, 5)]
    target.write_text("model,gpu,input_tokens,batch_size,prefill_s,decode_step_s,note\n")
    with target.open("a") as file:
        file.writelines(rows)
    path.symlink_to(target)
    add_to_profiles(path, "g", SIZES, [Point(16 * n, n, 0.1, 0.1, 1) for n in range(1, 6)])
    assert path.is_symlink()
    assert target.read_text().count("mine") == 4
    assert set(read_profiles(path).fits) == {("old", "g"), ("own", "g")}


@given(st.integers(0, 2), st.floats(2, 50))
def test_a_prefill_of_several_steps_is_not_fitted_but_its_decode_steps_are(
    several: int, slower: float
) -> None:
    found = [
        Point(
            length,
            batch,
            (0.007 + 2e-5 * length * batch) * (slower if length * batch > 4096 else 1),
            0.009 + 1e-7 * length * batch + 7e-5 * batch,
            2 + several if length * batch > 4096 else 1,
        )
        for length in (16, 256, 1024, 4096)
        for batch in (1, 4, 16)
    ]
    fit, verdicts = fit_points(found)
    assert fit.prefill_s[:2] == pytest.approx((0.007, 2e-5), rel=1e-6)
    assert fit.step_s == pytest.approx((0.009, 1e-7, 7e-5), rel=1e-6)
    assert fit.error_worst < 1e-6
    for point, (prefill, step) in zip(found, verdicts, strict=True):
        assert (prefill.left_out == "several steps") == (point.prefill_steps != 1)
        assert prefill.left_out in ("", "several steps") and step.left_out == ""


@given(st.integers(0, 11), st.floats(2, 50))
def test_an_outlier_is_named_and_does_not_count(place: int, slip: float) -> None:
    found = [
        Point(length, batch, 0.007 + 2e-5 * length * batch, 0.009 + 7e-5 * batch, 1)
        for length in (16, 64, 256, 1024)
        for batch in (1, 4, 16)
    ]
    found[place] = found[place]._replace(prefill_s=slip * found[place].prefill_s)
    fit, verdicts = fit_points(found)
    if verdicts[place][0].left_out:  # unless it is where nothing else tells otherwise
        assert fit.left_out >= 1
        assert fit.error_worst <= 0.1
    else:
        assert abs(verdicts[place][0].error or 0) <= fit.error_worst


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"weights_bytes": ""}, "line 2: it has .* and not weights_bytes"),
        ({"switch_fixed_s": ""}, "line 2: it has no switch_fixed_s"),
        ({"switch_fixed_s": "-1"}, "line 2: switch_fixed_s is -1 and not at least 0"),
        ({"prefill_s": "0"}, "line 2: prefill_s is 0 and not above 0"),
        ({"copy_s_per_byte": "0"}, "line 2: copy_s_per_byte is 0 and not above 0"),
        ({"context_tokens_max": "1.5"}, "line 2: context_tokens_max is 1.5 and not a whole"),
        ({"prefill_steps": "x"}, "line 2: prefill_steps is no number"),
        ({"weights_bytes": "3e9"}, "line 3: sizes and times of a switch must be those of the"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(
    tmp_path: Path, changed: dict[str, str], says: str
) -> None:
    path = tmp_path / "profiles.csv"
    add_to_profiles(path, "g", SIZES, [Point(16 * n, n, 0.1, 0.1, 1) for n in range(1, 6)])
    lines = path.read_text().splitlines()
    first = dict(zip(COLUMNS, lines[1].split(","), strict=True)) | changed
    path.write_text("\n".join([lines[0], ",".join(first.values()), *lines[2:]]))
    with pytest.raises(UsageError, match=says):
        read_profiles(path)


def test_a_switch_takes_what_was_measured() -> None:
    one = [Arrival(0.0, "m", 16, 4)]
    hardware = Hardware(devices=1, gpu="g", link_bytes_per_s=1e3)
    for policy in ("fcfs", "aegaeon", "deadlines"):
        found = simulate(one, policy, hardware, fits={("own", "g"): FIT}, checkpoints={"m": SIZES})
        assert found.switching_s == pytest.approx(0.5 + 2e9 * 1e-9)
    started = simulate(
        one, "autoscaling", hardware, fits={("own", "g"): FIT}, checkpoints={"m": SIZES}
    )
    assert started.switching_s == 30.0  # the start of an engine takes no less than it does


@given(
    st.lists(
        st.builds(
            Arrival,
            st.integers(0, 20).map(float),
            st.sampled_from("abc"),
            st.integers(1, 400),
            st.integers(1, 100),
        ),
        min_size=1,
        max_size=25,
    ),
    st.sampled_from(["fcfs", "aegaeon", "deadlines"]),
)
@settings(max_examples=40)
def test_measured_as_the_link_is_as_it_is_by_the_link(trace: list[Arrival], policy: str) -> None:
    by_link = {name: Checkpoint(name, float(30 << 30), 1 << 10, 512) for name in "abc"}
    times = SwitchTimes(0.0, 1 / LINK, 1 / LINK)
    measured = {name: replace(one, switch=times) for name, one in by_link.items()}
    hardware = Hardware(devices=1, gpu="g", link_bytes_per_s=LINK)
    fits = {(name, "g"): FIT for name in "abc"}
    ordered = sorted(trace)
    expected, found = (
        simulate(
            ordered,
            policy,
            hardware,
            assumptions=replace(HONEST, switch_s_min=0.0),
            fits=fits,
            checkpoints=one,
        )
        for one in (by_link, measured)
    )
    assert found == expected


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_policy_expects_a_switch_to_take_what_it_takes(
    fixed_s: float, s_per_byte: float, there: float
) -> None:
    costs = Costs((0, 0, 0), (0, 0, 0), fixed_s + 100 * s_per_byte, 0, 1, fixed_s)
    sizes = {0: Sizes(100.0, 1.0, 0.0, fixed_s, s_per_byte, s_per_byte)}
    loader = ResidentLoader(sizes, capacity_bytes=1e6, link_bytes_per_s=7.0, switch_s_min=9.0)
    device, batch = Device(0), Batch(0)
    fetched = Batch(1)
    sizes[1] = Sizes(1.0, 1.0, 0.0)
    loader.computed(device, fetched, there * 100 * s_per_byte, 0, (0,))
    expected_s = costs.load_s(device.resident.get(0, 0.0))
    assert loader.switch_s(device, batch, ()) == pytest.approx(expected_s)


def test_models_are_those_of_the_file_or_get_them_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "profiles.csv"
    measured = [Point(16 * n, n, 0.1 * n, 0.1, 1) for n in range(1, 6)]
    for name in ("own", "second"):
        add_to_profiles(path, "g", replace(SIZES, name=name), measured)
    profiles = read_profiles(path)
    names = ["x", "second", "qwen2_5_7b", "y", "z"]
    trace = [Arrival(0.0, name, 1, 1) for name in names]
    found = profiles.checkpoints_of(trace, "g")
    assert {name: one.name for name, one in found.items()} == {
        "x": "own",
        "second": "second",
        "y": "second",
        "z": "own",
    }
    assert "qwen2_5_7b" in CHECKPOINTS
    with pytest.raises(UsageError, match=r"nothing was measured on other: the profiles are of g$"):
        profiles.checkpoints_of(trace, "other")
    assert NOTHING_MEASURED.checkpoints_of(trace, "other") == {}


def test_the_command_simulates_a_model_that_only_the_file_knows(tmp_path: Path) -> None:
    path = tmp_path / "profiles.csv"
    measured = [Point(16 * n, n, 0.001 * n, 0.01, 1) for n in range(1, 6)]
    add_to_profiles(path, "g", SIZES, measured)
    arguments = ["simulate", "--models", "3", "--profiles", str(path), "--json", "-"]
    done = CliRunner().invoke(main, [*arguments, "--gpu", "g"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    other = CliRunner().invoke(main, [*arguments, "--gpu", "TPU"])
    assert other.exit_code != 0
    assert "nothing was measured on TPU: the profiles are of g" in other.stderr


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "profiles.csv"
    add_to_profiles(path, "g", SIZES, [Point(16 * n, n, 0.001 * n, 0.01, 1) for n in range(1, 6)])
    before = read_profiles(path)
    path.write_text(path.read_text(), "utf-8-sig")
    assert read_profiles(path) == before
