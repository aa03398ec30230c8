"""What an engine tells of its requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm")

from gpupool.daemon.protocol import WORKING_MAX, Working
from gpupool.vllm.reporting import Reporter


def output(
    new: dict[str, int] | None = None,
    running: dict[str, int] | None = None,
    finished: set[str] | None = None,
    tokens: int = 0,
) -> SimpleNamespace:
    """A scheduler output: prompts of new requests, tokens made by running ones."""
    new, running = new or {}, running or {}
    requests = [*new, *running]
    return SimpleNamespace(
        finished_req_ids=finished or set(),
        scheduled_new_reqs=[SimpleNamespace(req_id=k, prompt_len=n) for k, n in new.items()],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(running), num_output_tokens=list(running.values())
        ),
        num_scheduled_tokens=dict.fromkeys(requests, 1),
        total_num_scheduled_tokens=tokens or len(requests),
    )


@dataclass
class Heard:
    """What the daemon would know after all of it."""

    now_s: float = 0.0
    told: list[Working] = field(default_factory=list)

    def known(self) -> dict[str, int]:
        names: dict[int, str] = {}
        made: dict[int, int] = {}
        for work in self.told:
            assert max(map(len, (work.began, work.produced, work.ended))) <= WORKING_MAX
            for number, name, _ in work.began:
                assert number not in names
                names[number], made[number] = name, 0
            for number, tokens in work.produced:
                made[number] = tokens
            for number in work.ended:
                del made[number]
        return {names[number]: tokens for number, tokens in made.items()}


def reporter(heard: Heard) -> Reporter:
    return Reporter(heard.told.append, clock=lambda: heard.now_s)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(0, 0.1)), max_size=30))
def test_what_was_told_adds_up_to_what_there_is(steps: list[tuple[int, int, float]]) -> None:
    heard = Heard()
    tells = reporter(heard)
    running: dict[str, int] = {}
    count = decoded = prefilled = 0
    for comes, goes, took_s in steps:
        new = {f"r{count + k}": 10 for k in range(comes)}
        count += comes
        finished = set(list(running)[:goes])
        running = {name: made for name, made in running.items() if name not in finished}
        step = output(new, running, finished, tokens=10 * len(new) + len(running))
        tells.scheduled(step)
        if new or running:
            tells.ran(step, took_s)
            if step.total_num_scheduled_tokens > 2 * len(step.num_scheduled_tokens):
                prefilled += step.total_num_scheduled_tokens
            else:
                decoded += 1
        running = {name: made + 1 for name, made in {**running, **dict.fromkeys(new, 0)}.items()}
        heard.now_s += 0.01
    tells.scheduled(output({}, running))
    tells.flush()
    assert heard.known() == running
    assert sum(work.steps for work in heard.told) == decoded
    assert sum(work.prefilled_tokens for work in heard.told) == prefilled


def test_a_request_is_told_of_before_its_first_step() -> None:
    """Its engine may wait for memory in that step."""
    heard = Heard()
    reporter(heard).scheduled(output({"cmpl-1-0": 7}))
    (work,) = heard.told
    assert work.began == [(1, "cmpl-1-0", 7)]


def test_tokens_alone_are_told_of_now_and_then() -> None:
    heard = Heard(now_s=5.0)
    tells = reporter(heard)
    tells.scheduled(output({"a": 1}))
    for made in range(1, 101):
        step = output({}, {"a": made})
        tells.scheduled(step)
        heard.now_s += 0.001
        tells.ran(step, 0.001)
    assert 3 <= len(heard.told) <= 7


def test_many_requests_take_many_messages() -> None:
    heard = Heard()
    tells = reporter(heard)
    many = {f"r{k}": 1 for k in range(2 * WORKING_MAX + 1)}
    tells.scheduled(output(many))
    assert len(heard.told) == 3
    assert heard.known() == dict.fromkeys(many, 0)
    tells.scheduled(output({}, {}, set(many)))
    assert heard.known() == {}
