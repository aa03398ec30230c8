"""An image in host memory that is not what was saved gets into no file."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool import Model, Pool
from gpupool._core import Region
from gpupool.adopt import adopt
from gpupool.errors import DamagedMemoryError, ImageDamagedError, UsageError
from gpupool.images.format import CHUNK_BYTES as PIECE
from gpupool.images.modules import load_image, save_image

KEY = {"of": "this"}
EMPTY = torch.nn.Module()
"""An image is of a model's regions, whatever tensors there are in them."""
Sizes = Sequence[tuple[str, int]]
WEIGHTS = [("weights", 3 * PIECE - 100), ("weights", 17), ("runtime", PIECE + 1)]
EDGES = st.builds(lambda pieces, off: max(1, pieces * PIECE + off), st.integers(0, 2),
                  st.integers(-4097, 4097))  # fmt: skip
REGIONS = st.lists(st.tuples(st.sampled_from(["weights", "runtime"]), EDGES), min_size=1,
                   max_size=3)  # fmt: skip


@contextmanager
def pool_of() -> Iterator[Pool]:
    pool = Pool(device="host", budget_bytes=16 * PIECE, page_bytes=PIECE)
    try:
        yield pool
    finally:
        pool.close()


def filled(pool: Pool, name: str, sizes: Sizes, **more: object) -> Model:
    """A model that is out, with images of bytes that depend on the sizes alone."""
    model, content = pool.model(name, **more), random.Random(1)  # type: ignore[arg-type]
    for tag, size_bytes in sizes:
        region = model.region(tag, size_bytes)
        with memoryview(region.image()) as image:  # type: ignore[arg-type]
            image.cast("B")[:] = content.randbytes(size_bytes)
        region.adopt_image()
    return model


def regions(model: Model) -> list[Region]:
    return [*model.regions("weights"), *model.regions("runtime")]


def contents(model: Model) -> list[bytes]:
    return [bytes(region.image()) for region in regions(model)]  # type: ignore[call-overload]


def flip(region: Region, at: int, bit: int = 0) -> None:
    with memoryview(region.image()) as image:  # type: ignore[arg-type]
        image.cast("B")[at] ^= 1 << bit


def damaged(pool: Pool, name: str) -> int:
    return next(model.damaged for model in pool.statistics().models if model.name == name)


def check_loaded(pool: Pool, path: Path, due: list[bytes]) -> None:
    again = pool.model("again")
    load_image(path, torch.nn.Module(), again, KEY)
    assert contents(again) == due
    again.close()


def check_refused(pool: Pool, model: Model, folder: Path, region: Region, at: int) -> None:
    """Neither a file that is there, nor a new one, nor what one is made of; and it is told."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("image", "new", "deeper/new"):
        counted = damaged(pool, model.name)
        said = rf"model '{model.name}': bytes (\d+) to (\d+) of a region of {region.tag.name} "
        with pytest.raises(DamagedMemoryError, match=said + "are not what was saved, and") as found:
            save_image(folder / name, EMPTY, model, KEY)
        words = str(found.value).split()
        assert int(words[3]) <= at < int(words[5])
        assert damaged(pool, model.name) == counted + 1
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@given(sizes=REGIONS, verify=st.sampled_from(["always", "sample"]), shares=st.booleans(),
       was_in=st.booleans(), data=st.data())  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_what_was_saved_is_written_and_nothing_else(
    sizes: Sizes, verify: str, shares: bool, was_in: bool, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name, pool_of() as pool:
        folder = Path(name)
        models = [filled(pool, one, sizes, verify=verify, shares=shares) for one in "ab"]
        model = models[0]
        for one in models if shares else ():
            one.share()
        if was_in:
            with model.resident():
                pass
            model.swap_out()
        due = contents(model)
        save_image(folder / "image", EMPTY, model, KEY)
        check_loaded(pool, folder / "image", due)
        index = data.draw(st.integers(0, len(due) - 1))
        region, at = regions(model)[index], data.draw(st.integers(0, len(due[index]) - 1))
        bit = data.draw(st.integers(0, 7))
        flip(region, at, bit)
        check_refused(pool, model, folder, region, at)
        flip(region, at, bit)
        save_image(folder / "image", EMPTY, model, KEY)
        check_loaded(pool, folder / "image", due)


def test_every_piece_of_every_region_counts(tmp_path: Path) -> None:
    with pool_of() as pool:
        model = filled(pool, "a", WEIGHTS)
        save_image(tmp_path / "image", EMPTY, model, KEY)
        flipped = 0
        for region in regions(model):
            for begin in range(0, region.bytes, PIECE):
                for at in {begin, min(begin + PIECE, region.bytes) - 1}:
                    flip(region, at)
                    check_refused(pool, model, tmp_path, region, at)
                    flip(region, at)
                    flipped += 1
        assert flipped == 11
        save_image(tmp_path / "new", EMPTY, model, KEY)


def test_what_models_share_is_held_against_what_each_has_saved(tmp_path: Path) -> None:
    with pool_of() as pool:
        models = [filled(pool, name, [("weights", 3 * PIECE)], shares=True) for name in "ab"]
        for model in models:
            model.share()
        flip(regions(models[0])[0], PIECE + 5)  # of memory that both have
        for model in models:
            check_refused(pool, model, tmp_path, regions(model)[0], PIECE + 5)


def test_pieces_that_are_cut_otherwise_than_those_of_a_file_count(tmp_path: Path) -> None:
    """As of an image that has grown, which is in several runs of memory."""
    first_bytes, bytes_now = 2 * PIECE + PIECE // 2 + 24, 4 * PIECE - 100
    with pool_of() as pool:
        model = pool.model("a")
        region = model.region("weights", first_bytes, capacity_bytes=bytes_now)
        with memoryview(region.image()) as image:  # type: ignore[arg-type]
            image.cast("B")[:] = random.Random(2).randbytes(first_bytes)
        region.adopt_image()
        model.resize(region, bytes_now)
        with pytest.raises(UsageError, match="a region of weights was not saved whole"):
            save_image(tmp_path / "image", EMPTY, model, KEY)
        with model.resident():
            pass
        model.swap_out()
        cut = [begin for begin, _, _ in region.known_digests()]
        assert [begin % PIECE for begin in cut].count(0) == 4 < len(cut)
        due = contents(model)
        save_image(tmp_path / "image", EMPTY, model, KEY)
        for at in [*cut, *(begin - 1 for begin in cut[1:]), bytes_now - 1]:
            flip(region, at)
            check_refused(pool, model, tmp_path, region, at)
            flip(region, at)
        save_image(tmp_path / "image", EMPTY, model, KEY)
        check_loaded(pool, tmp_path / "image", due)


def test_a_module_that_was_damaged_before_it_is_written_is_not_served(tmp_path: Path) -> None:
    with pool_of() as pool:
        module, model = torch.nn.Linear(700, 900), pool.model("a")
        due = module.weight.detach().clone()
        adopt(module, model)
        (region,) = model.regions("weights")
        flip(region, PIECE + 3, 6)
        with pytest.raises(DamagedMemoryError):
            save_image(tmp_path / "image", module, model, KEY)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(DamagedMemoryError), model.resident():  # as ever
            raise AssertionError("a step began")
        flip(region, PIECE + 3, 6)
        save_image(tmp_path / "image", module, model, KEY)
        again, fresh = torch.nn.Linear(700, 900), pool.model("again")
        load_image(tmp_path / "image", again, fresh, KEY)
        with fresh.resident():
            assert torch.equal(again.weight, due)


def test_what_changes_as_it_is_written_is_found_as_it_is_read(tmp_path: Path) -> None:
    with pool_of() as pool:
        model = filled(pool, "a", WEIGHTS)

        def room(_: int, allocate: Callable[[], None]) -> None:
            allocate()
            flip(regions(model)[0], PIECE)  # it was looked at by now

        save_image(tmp_path / "image", EMPTY, model, KEY, room=room)
        with pytest.raises(ImageDamagedError, match="is not what was written"):
            load_image(tmp_path / "image", torch.nn.Module(), pool.model("again"), KEY)


def test_what_is_not_verified_is_written_as_it_is(tmp_path: Path) -> None:
    with pool_of() as pool:
        model = filled(pool, "a", WEIGHTS, verify="off")
        flip(regions(model)[0], 5)
        save_image(tmp_path / "image", EMPTY, model, KEY)
        check_loaded(pool, tmp_path / "image", contents(model))
        assert damaged(pool, "a") == 0


@pytest.mark.parametrize("verify", ["always", "off"])
@pytest.mark.parametrize("tag", ["weights", "runtime"])
def test_what_was_never_saved_is_not_written(tmp_path: Path, verify: str, tag: str) -> None:
    with pool_of() as pool:
        model = pool.model("a", verify=verify)
        model.region(tag, PIECE + 1)
        with pytest.raises(UsageError, match=f"a region of {tag} was not saved whole"):
            save_image(tmp_path / "image", EMPTY, model, KEY)
        assert list(tmp_path.iterdir()) == []
        with model.resident():
            pass
        model.swap_out()
        save_image(tmp_path / "image", EMPTY, model, KEY)
        check_loaded(pool, tmp_path / "image", [bytes(PIECE + 1)])
