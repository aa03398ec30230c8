from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from demo.checkpoints import (
    DEMO_SPECS,
    MANIFEST,
    CheckpointSpec,
    cached_checkpoint,
    content_digest,
    write_llama,
)
from demo.large_checkpoints import large_spec, parameters_of, write_large
from demo.questions import demo_requests

TINY = CheckpointSpec(seed=1, hidden_size=64, layers=2, heads=4, kv_heads=2, intermediate_size=192)


def test_same_spec_gives_same_bytes(tmp_path: Path) -> None:
    first = cached_checkpoint(tmp_path / "a", TINY)
    second = cached_checkpoint(tmp_path / "b", TINY)
    assert content_digest(first) == content_digest(second)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize("change", [{"seed": 2}, {"layers": 1}, {"kv_heads": 4}])
def test_other_spec_gives_another_checkpoint(tmp_path: Path, change: dict[str, int]) -> None:
    other = cached_checkpoint(tmp_path, replace(TINY, **change))
    first = cached_checkpoint(tmp_path, TINY)
    assert first != other
    assert content_digest(first) != content_digest(other)


def test_whole_entry_is_kept(tmp_path: Path) -> None:
    entry = cached_checkpoint(tmp_path, TINY)
    before = (entry / "model.safetensors").stat().st_ino
    assert cached_checkpoint(tmp_path, TINY) == entry
    assert (entry / "model.safetensors").stat().st_ino == before


def _flip_a_bit(entry: Path) -> None:
    path = entry / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _cut_short(entry: Path) -> None:
    path = entry / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4096])


def _remove_config(entry: Path) -> None:
    (entry / "config.json").unlink()


def _remove_manifest(entry: Path) -> None:
    (entry / MANIFEST).unlink()


def _break_manifest(entry: Path) -> None:
    (entry / MANIFEST).write_text("{")


@pytest.mark.parametrize(
    "harm", [_flip_a_bit, _cut_short, _remove_config, _remove_manifest, _break_manifest]
)
def test_broken_entry_is_written_again(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    entry = cached_checkpoint(tmp_path, TINY)
    before = {path.name: path.read_bytes() for path in entry.iterdir()}
    harm(entry)
    assert cached_checkpoint(tmp_path, TINY) == entry
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == before
    assert list(tmp_path.iterdir()) == [entry]


def test_tensors_have_the_shapes_of_the_config(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny", seed=3)
    config = json.loads((path / "config.json").read_text())
    with safe_open(path / "model.safetensors", framework="np") as file:
        names = file.keys()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    hidden, kv_width = config["hidden_size"], config["num_key_value_heads"] * config["head_dim"]
    assert len(shapes) == 3 + 9 * config["num_hidden_layers"]
    assert shapes["lm_head.weight"] == (config["vocab_size"], hidden)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (kv_width, hidden)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (hidden, config["intermediate_size"])
    assert (path / "model.safetensors").stat().st_size < 5_000_000


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of kv_heads"):
        replace(TINY, kv_heads=3)
    with pytest.raises(ValueError, match="not a multiple of heads"):
        replace(TINY, hidden_size=66)
    with pytest.raises(ValueError, match="below the tokenizer's"):
        replace(TINY, vocab=100)


def test_transformers_loads_the_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = write_llama(tmp_path / "tiny", seed=3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert len(tokenizer) == TINY.vocab
    for text in ("A river finds the sea.", "naïve — 日本語 🙂\n\ttabs  and spaces"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert chat == "<|begin|><|system|>Be brief.<|end|><|user|>Why?<|end|><|assistant|>"
    first, *rest = tokenizer.encode(chat)
    assert first == tokenizer.bos_token_id == 0
    assert 0 not in rest
    assert tokenizer.eos_token_id == 1


def test_the_demo_asks_every_model(tmp_path: Path) -> None:
    requests = demo_requests()
    assert requests.keys() == DEMO_SPECS.keys()
    for listed in requests.values():
        assert len(listed) >= 6
        assert {request.temperature for request in listed} == {0.0, 0.8}
        assert len({request.question for request in listed}) == len(listed)


@pytest.mark.parametrize("parameters", [3e6, 3e7, 3e8, 1e9, 1.5e9, 3e9, 8e9])
def test_large_models_have_about_the_parameters_asked_for(parameters: float) -> None:
    spec = large_spec(0, parameters)
    assert abs(parameters_of(spec) / parameters - 1) < 0.1
    assert spec.head_size >= 32 and spec.heads % spec.kv_heads == 0


def test_large_checkpoints_in_several_files(tmp_path: Path) -> None:
    spec = large_spec(1, 3e6)
    for folder, shard_bytes in (("one", 1 << 30), ("several", 1 << 20)):
        write_large(tmp_path / folder, spec, shard_bytes=shard_bytes)
    found = {}
    for folder in ("one", "several"):
        index = json.loads((tmp_path / folder / "model.safetensors.index.json").read_text())
        for name, file in index["weight_map"].items():
            with safe_open(tmp_path / folder / file, "pt") as opened:
                found[folder, name] = opened.get_tensor(name)
        assert index["metadata"]["total_size"] == 2 * parameters_of(spec)
    assert sum(each.nbytes for each in found.values()) == 4 * parameters_of(spec)
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 2
    # The same in however many files, and of no two matrices.
    names = sorted(name for folder, name in found if folder == "one")
    assert all(found["one", name].equal(found["several", name]) for name in names)
    queries = [found["one", name] for name in names if "q_proj" in name]
    assert not queries[0].equal(queries[1])
    assert queries[0].dtype.is_floating_point and queries[0].itemsize == 2
