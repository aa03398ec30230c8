"""Models with weights of their own, which say whether they have what is theirs."""

from __future__ import annotations

from pool_bench import PAGE_BYTES, memory_of

from gpupool import Model, Pool


def loaded(pool: Pool, name: str, pages: int) -> Model:
    model = pool.model(name)
    region = model.region("weights", pages * PAGE_BYTES)
    with memoryview(region.image()) as image:  # type: ignore[arg-type]
        image.cast("B")[:: PAGE_BYTES // 2] = bytes([ord(name)]) * (2 * pages)
    region.adopt_image()
    return model


def come(*models: Model) -> None:
    for model in models:
        with model.resident():
            assert set(memory_of(model.regions("weights")[0])[:: PAGE_BYTES // 2]) == {
                ord(model.name)
            }
