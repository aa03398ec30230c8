"""No model comes in with bytes that are not what was saved."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pool_bench import PAGE_BYTES, pool_of

from gpupool import Model, Pool
from gpupool.errors import DamagedMemoryError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def with_weights(pool: Pool, verify: str) -> tuple[Model, Callable[[int], None]]:
    """A model that is out, and what flips a bit of a byte of its image."""
    model = pool.model("a", verify=verify)
    region = model.region("weights", 3 * PAGE_BYTES - 100)
    with memoryview(region.image()) as image:  # type: ignore[arg-type]
        image.cast("B")[:7] = b"weights"
    region.adopt_image()

    def flip(at: int) -> None:
        with memoryview(region.image()) as image:  # type: ignore[arg-type]
            image.cast("B")[at] ^= 1

    return model, flip


@pytest.mark.parametrize("at", [0, PAGE_BYTES - 1, PAGE_BYTES, 3 * PAGE_BYTES - 101])
def test_a_flipped_bit_is_found_before_a_step(at: int) -> None:
    pool = pool_of()
    model, flip = with_weights(pool, "always")
    flip(at)
    for _ in range(2):
        with (
            pytest.raises(DamagedMemoryError, match=r"model 'a': bytes .* region of weights"),
            model.resident(),
        ):
            raise AssertionError("a step began")
        assert not model.gate.is_resident
        assert pool.free_bytes == pool.statistics().pages.total * PAGE_BYTES
    flip(at)
    with model.resident():
        assert model.last_swap_in is not None
        assert model.last_swap_in.verified_bytes == model.last_swap_in.copied_bytes > 0
        assert ctypes.string_at(model.regions("weights")[0].address, 7) == b"weights"
    pool.close()


def test_what_is_not_verified_comes_in_as_it_is() -> None:
    pool = pool_of()
    model, flip = with_weights(pool, "off")
    flip(0)
    with model.resident():
        assert model.last_swap_in is not None
        assert model.last_swap_in.verified_bytes == 0
        assert ctypes.string_at(model.regions("weights")[0].address, 7) == b"veights"
    assert pool.statistics().driver.digested_bytes == 0
    pool.close()


def test_weights_that_only_might_have_been_written_are_not_saved() -> None:
    pool = pool_of()
    model, _ = with_weights(pool, "always")
    with model.resident(writes=True):
        pass
    model.swap_out()
    assert model.last_swap_out is not None
    assert model.last_swap_out.copied_bytes == 0
    with model.resident(writes=True):
        ctypes.memset(model.regions("weights")[0].address + PAGE_BYTES, 5, 1)
    model.swap_out()
    assert 0 < model.last_swap_out.copied_bytes <= PAGE_BYTES
    with model.resident():
        assert ctypes.string_at(model.regions("weights")[0].address + PAGE_BYTES, 2) == b"\x05\x00"
    pool.close()


@pytest.mark.parametrize("verify", ["always", "sample", "off"])
def test_what_was_written_through_no_door_is_found(verify: str) -> None:
    """Each piece in turn; the image is the truth, and a swap-out moves nothing."""
    pool = pool_of()
    model, _ = with_weights(pool, verify)
    pieces = 3 if verify == "sample" else 1  # swap-outs until all have had their turn
    unmarked = 0
    for _ in range(pieces):
        with model.resident():
            assert ctypes.string_at(model.regions("weights")[0].address, 7) == b"weights"
            ctypes.memset(model.regions("weights")[0].address, 5, 7)
        model.swap_out()
        assert model.last_swap_out is not None
        assert model.last_swap_out.copied_bytes == 0
        unmarked += model.last_swap_out.unmarked_bytes
    expected = 0 if verify == "off" else PAGE_BYTES
    outs = pool.statistics().models[0].swap_outs
    assert unmarked == outs.unmarked_bytes == expected
    assert outs.audited_bytes == (0 if verify == "off" else 3 * PAGE_BYTES - 100)
    with model.resident():
        assert ctypes.string_at(model.regions("weights")[0].address, 7) == b"weights"
    pool.close()


def test_another_word_is_refused() -> None:
    pool = pool_of()
    with pytest.raises(UsageError, match="'always', 'sample' or 'off'"):
        pool.model("a", verify="never")
    pool.model("a").close()  # the name is free
    pool.close()


def test_the_kernel_is_what_its_source_compiles_to() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "ptx.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    if done.stdout:
        pytest.skip(done.stdout.strip())
