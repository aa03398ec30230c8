"""Which checkpoint this is, without reading its weights: what an image's key says of it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from gpupool.errors import UsageError

_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})
_READ = frozenset({".json", ".py"})
# Of texts and of sampling, which no weight depends on.
_UNRELATED = re.compile(
    r"(tokenizer|vocab|merges|added_tokens|special_tokens|generation_config|chat_template"
    r"|preprocessor_config|trainer_state)"
)
_READ_BYTES_MAX = 64 << 20
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def checkpoint_digest(folder: Path) -> str:
    """A digest that differs when the weights in the folder, or what says how to read them, do.

    Of weight files it has the name, size, inode, and when content and inode were last changed; of a
    file in the Hugging Face cache, which is named by its content and never written again, that
    name. Configurations, indices and code count by their content. Raises UsageError for a folder
    without weights, and OSError.
    """
    found: list[tuple[object, ...]] = []
    has_weights = False
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHTS and path.is_file():
            has_weights = True
            found.append((path.name, *_stamp(path)))
        elif path.suffix in _READ and path.is_file() and not _UNRELATED.match(path.name):
            if path.stat().st_size > _READ_BYTES_MAX:
                found.append((path.name, *_stamp(path)))
            else:
                found.append((path.name, hashlib.blake2b(path.read_bytes()).hexdigest()))
    if not has_weights:
        raise UsageError(f"{folder} has no file of weights that an image could be told by")
    return hashlib.blake2b(repr(found).encode(), digest_size=32).hexdigest()


def _stamp(path: Path) -> tuple[object, ...]:
    real = path.resolve()
    if path.is_symlink() and real.parent.name == "blobs" and _BLOB.fullmatch(real.name):
        return ("blob", real.name)
    status = real.stat()
    # A copy over the file can keep its time of change, but not that of its inode.
    return (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
