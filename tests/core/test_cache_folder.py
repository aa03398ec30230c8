"""Where gpupool keeps what can be had again."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpupool.cache_folder import cache_folder


@pytest.mark.parametrize("given", ["/fast/cache", "~/elsewhere", "", " ", None])
def test_it_is_in_the_users_cache_folder(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if given is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    expected = {"/fast/cache": Path("/fast/cache"), "~/elsewhere": tmp_path / "elsewhere"}
    assert cache_folder() == expected.get(given or "", tmp_path / ".cache") / "gpupool"
