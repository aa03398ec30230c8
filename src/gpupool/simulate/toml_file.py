"""TOML files read into frozen structs; what is wrong with one is said in a sentence."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from gpupool.errors import UsageError

Above = Annotated[float, Meta(gt=0, le=1e9)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
_Kind = TypeVar("_Kind", bound=msgspec.Struct)


def read_toml(path: Path, kind: type[_Kind]) -> _Kind:
    """All of a file. Raises UsageError, with one sentence, and OSError."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), kind)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: {explained(error)}") from None


def explained(error: Exception) -> str:
    """A message of msgspec's with the key in front, as one reads it; others as they are."""
    found = re.fullmatch(r"(.*) - at `\$\.?(.*)`", str(error), re.DOTALL)
    return f"{found[2]}: {found[1]}" if found else str(error)
