"""Small Llama checkpoints with random weights and a real tokenizer, written in seconds.

A checkpoint is a function of its `CheckpointSpec` alone: the same spec gives the same bytes on
every machine. `cached_checkpoint` keeps them between runs in a directory named after a digest of
the spec, and writes one again when a file is missing, cut short or changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from demo.tokenizer import BOS_ID, EOS_ID, VOCABULARY, write_tokenizer

#: Raise it when the bytes that a spec stands for change: cached checkpoints are then rewritten.
FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class CheckpointSpec:
    """Shape and seed of a Llama model with random weights.

    `logit_scale` is the standard deviation of the logits: a few units spread them like a
    trained model's, so that the likeliest token is rarely a near-tie.
    """

    seed: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    vocab: int = VOCABULARY
    max_position_embeddings: int = 2048
    logit_scale: float = 4.0

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.vocab < VOCABULARY:
            raise ValueError(f"vocab {self.vocab} is below the tokenizer's {VOCABULARY}")

    @property
    def head_size(self) -> int:
        """Elements of one attention head."""
        return self.hidden_size // self.heads

    def digest(self) -> str:
        """Hexadecimal digest of everything that the checkpoint's bytes depend on."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


#: The demo's models: different seeds and shapes, 59 to 84 MB of float32 weights each.
DEMO_SPECS: dict[str, CheckpointSpec] = {
    "llama-small": CheckpointSpec(
        seed=11, hidden_size=384, layers=6, heads=6, kv_heads=2, intermediate_size=1024
    ),
    "llama-wide": CheckpointSpec(
        seed=22, hidden_size=640, layers=2, heads=10, kv_heads=5, intermediate_size=1536
    ),
    "llama-deep": CheckpointSpec(
        seed=33, hidden_size=512, layers=4, heads=8, kv_heads=4, intermediate_size=1536
    ),
}


def write_llama(
    path: Path,
    *,
    seed: int,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = VOCABULARY,
    intermediate_size: int | None = None,
) -> Path:
    """Write a tiny checkpoint (4.6 MB with the defaults) into the directory `path`, for tests.

    Raises ValueError for a shape that no Llama has and OSError when the files cannot be written.
    """
    spec = CheckpointSpec(
        seed=seed,
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        vocab=vocab,
        intermediate_size=intermediate_size or 3 * hidden_size,
    )
    write_checkpoint(path, spec)
    return path


def write_checkpoint(path: Path, spec: CheckpointSpec) -> None:
    """Write the checkpoint of `spec` into the directory `path`, creating it."""
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / "config.json", config(spec))
    _write_json(
        path / "generation_config.json",
        {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "do_sample": False},
    )
    save_file(dict(_tensors(spec)), path / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(path)


def cached_checkpoint(cache: Path, spec: CheckpointSpec) -> Path:
    """The directory of the checkpoint of `spec` under `cache`, written when absent or broken.

    It is written beside its final place and renamed, so an interrupted run leaves nothing that
    a later one would take for whole.
    """
    entry = cache / f"llama-{spec.digest()}"
    if _is_whole(entry):
        return entry
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=cache) as scratch:
        fresh = Path(scratch) / "checkpoint"
        write_checkpoint(fresh, spec)
        _write_json(fresh / MANIFEST, _digests(fresh))
        if entry.exists():
            shutil.rmtree(entry)
        fresh.replace(entry)
    return entry


def content_digest(checkpoint: Path) -> str:
    """Digest of a cached checkpoint's contents: what answers are keyed by.

    Raises FileNotFoundError when `checkpoint` was not written by `cached_checkpoint`.
    """
    return hashlib.sha256((checkpoint / MANIFEST).read_bytes()).hexdigest()[:16]


def weights_bytes(checkpoint: Path) -> int:
    """Bytes of the checkpoint's weights, the few of the file's header included."""
    return (checkpoint / "model.safetensors").stat().st_size


def _is_whole(entry: Path) -> bool:
    try:
        recorded = json.loads((entry / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return bool(recorded == _digests(entry))


def _digests(directory: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(directory.iterdir()):
        if path.name != MANIFEST:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def config(spec: CheckpointSpec, dtype: str = "float32") -> dict[str, Any]:
    """What transformers and vLLM read of a model with `spec` and weights of `dtype`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "dtype": dtype,
        "head_dim": spec.head_size,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "mlp_bias": False,
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": spec.vocab,
    }


@dataclass(frozen=True)
class Matrix:
    """A tensor of a checkpoint: normal values of this deviation, or ones where there is none."""

    name: str
    shape: tuple[int, ...]
    std: float | None


def matrices(spec: CheckpointSpec) -> Iterator[Matrix]:
    """Each tensor, in a fixed order.

    Rows have the scale that keeps activations near one. Queries and keys get more, so that
    attention looks at few tokens; values, outputs and the feed-forward weigh as much as the token
    itself, so that an answer depends on all of its context and not on its last token.
    """
    width, kv_width = spec.hidden_size, spec.kv_heads * spec.head_size
    inner = spec.intermediate_size
    yield Matrix("model.embed_tokens.weight", (spec.vocab, width), 0.5)
    for layer in range(spec.layers):
        prefix = f"model.layers.{layer}."
        yield Matrix(prefix + "input_layernorm.weight", (width,), None)
        yield Matrix(prefix + "self_attn.q_proj.weight", (width, width), 1.5 / width**0.5)
        yield Matrix(prefix + "self_attn.k_proj.weight", (kv_width, width), 1.5 / width**0.5)
        yield Matrix(prefix + "self_attn.v_proj.weight", (kv_width, width), 1 / width**0.5)
        yield Matrix(prefix + "self_attn.o_proj.weight", (width, width), 1 / width**0.5)
        yield Matrix(prefix + "post_attention_layernorm.weight", (width,), None)
        yield Matrix(prefix + "mlp.gate_proj.weight", (inner, width), 1 / width**0.5)
        yield Matrix(prefix + "mlp.up_proj.weight", (inner, width), 1 / width**0.5)
        yield Matrix(prefix + "mlp.down_proj.weight", (width, inner), 1 / inner**0.5)
    yield Matrix("model.norm.weight", (width,), None)
    yield Matrix("lm_head.weight", (spec.vocab, width), spec.logit_scale / width**0.5)


def _tensors(spec: CheckpointSpec) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Each tensor's name and values.

    RandomState's stream never changes between numpy versions, unlike Generator's.
    """
    random = np.random.RandomState(spec.seed)
    for each in matrices(spec):
        if each.std is None:
            yield each.name, np.ones(each.shape, dtype=np.float32)
        else:
            values = random.standard_normal(each.shape)
            yield each.name, (values * each.std).astype(np.float32)
