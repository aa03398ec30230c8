"""Finds out before any engine starts whether a local checkpoint can be read at all."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import msgspec

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# The limit of the safetensors format itself.
_MAX_HEADER_BYTES = 100_000_000
_INDEX = "model.safetensors.index.json"


class _Tensor(msgspec.Struct):
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def locate(model: str, base: Path) -> Path | None:
    """The directory that `model` names, relative to `base`, or None when it is a hub id.

    Raises ValueError when it is neither.
    """
    path = base / Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ValueError(f"{path} is not a directory; name the directory that holds config.json")
    if _HUB_ID.fullmatch(model) and ".." not in model:
        return None
    raise ValueError(
        f"{path} does not exist; name a checkpoint directory, or a hub id of the form org/name"
    )


def check(directory: Path) -> None:
    """Raises ValueError, with what to do, when `directory` is not a readable checkpoint.

    Reads configurations and headers only, so it costs milliseconds whatever the weights' size.
    """
    _check_config(directory / "config.json")
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        raise ValueError(
            f"{directory} holds no *.safetensors file; download or convert the weights"
        )
    for shard in shards:
        try:
            _check_shard(shard)
        except OSError as error:
            raise ValueError(
                f"{shard} cannot be read ({error.strerror}); make it readable for this user"
            ) from None
        except ValueError as error:
            raise ValueError(f"{shard} is damaged ({error}); download or write it again") from None
    _check_index(directory / _INDEX)


def _check_config(path: Path) -> None:
    try:
        content = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} holds no config.json; name the directory of a complete checkpoint"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); make it readable for this user"
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); download or write it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; download or write it again")


def _check_index(path: Path) -> None:
    """An index may name shards that were never downloaded."""
    if not path.exists():
        return
    try:
        index = msgspec.json.decode(path.read_bytes(), type=_Index)
    except (OSError, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); download it again") from None
    missing = sorted(
        {shard for shard in index.weight_map.values() if not (path.parent / shard).is_file()}
    )
    if missing:
        raise ValueError(f"{path} names {missing[0]}, which does not exist; download it")


def _check_shard(path: Path) -> None:
    """Reads the header alone: its length, its JSON, and where its tensors end."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError("it is shorter than a header")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise ValueError("its header is longer than the file or the format allows")
        header = file.read(header_bytes)
    try:
        tensors = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        tensors.pop("__metadata__", None)
        end = max(
            (msgspec.json.decode(raw, type=_Tensor).data_offsets[1] for raw in tensors.values()),
            default=0,
        )
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise ValueError("its header is not what safetensors writes") from None
    if 8 + header_bytes + end != size_bytes:
        raise ValueError(
            f"its header promises {8 + header_bytes + end} bytes and it has {size_bytes}"
        )
