"""Fits of measured times."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpupool.errors import UsageError
from gpupool.simulate.profile_file import read_profiles
from gpupool.simulate.profiles import known_fit

pytest.importorskip("numpy")
HEAD = "model,gpu,input_tokens,batch_size,prefill_s,decode_step_s\n"


def rows(*, slip: float = 1.0, overloaded: bool = False) -> str:
    """Points of 7 ms + 20 us a token, and 9 ms + 0.1 us a token + 70 us a request."""
    lines = []
    for length in (16, 64, 256, 1024):
        for batch in (1, 2, 4, 16, 64):
            if length * batch > 4096 and not overloaded:
                continue
            prefill_s = 0.007 + 2e-5 * min(4096, length * batch)
            step_s = 0.009 + 1e-7 * length * batch + 7e-5 * batch
            if length * batch > 4096:
                step_s *= 2
            if (length, batch) == (64, 4):
                prefill_s *= slip
            lines.append(f"m,g,{length},{batch},{prefill_s},{step_s}\n")
    return HEAD + "".join(lines)


@pytest.mark.parametrize("overloaded", [False, True])
@pytest.mark.parametrize("slip", [1.0, 9.0])
def test_a_fit_finds_what_the_points_were_made_of(
    tmp_path: Path, slip: float, overloaded: bool
) -> None:
    path = tmp_path / "profiles.csv"
    path.write_text(rows(slip=slip, overloaded=overloaded))
    fit = read_profiles(path).fits["m", "g"]
    assert fit.prefill_s[:2] == pytest.approx((0.007, 2e-5), rel=0.02)
    assert fit.step_s == pytest.approx((0.009, 1e-7, 7e-5), rel=0.02)
    assert (fit.left_out > 0) == (overloaded or slip > 1)
    assert fit.error_median < 0.01


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model,gpu\n", "no column"),
        (HEAD + "m,g,16,1,x,1\n", "line 2"),
        (HEAD + "m,g,16,1,-1,1\n", "line 2"),
        (HEAD + "m,g,16,1,0.1,0.1\n", "at least 4"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "profiles.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        read_profiles(path)


def test_what_was_never_measured_is_named() -> None:
    assert known_fit("qwen2_5_7b", "H100", {}).step_s[0] > 0
    with pytest.raises(UsageError, match="qwen2_5_7b on TPU") as error:
        known_fit("qwen2_5_7b", "TPU", {})
    assert str(error.value).count(" on ") == 5, "the nearest few"
    assert "like qwen2_5_7b on H100, " in str(error.value)


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"x" * 200_000, b"a\x00"])
def test_what_is_no_text_or_no_csv_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "profiles.csv"
    path.write_bytes(rows().encode() + b"m,g,16,1," + damage + b",1\n")
    with pytest.raises(UsageError, match=r"profiles\.csv.*(no CSV file|is no number)"):
        read_profiles(path)
