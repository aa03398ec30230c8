"""What an engine tells of its requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm")

from gpupool.daemon import wire
from gpupool.daemon.protocol import WORKING_MAX, Working
from gpupool.vllm.reporting import Reporter


def output(
    new: dict[str, int] | None = None,
    running: dict[str, int] | None = None,
    finished: set[str] | None = None,
    tokens: dict[str, int] | None = None,
) -> SimpleNamespace:
    """A scheduler output: prompts of new requests, tokens made by running ones."""
    new, running = new or {}, running or {}
    requests = [*new, *running]
    return SimpleNamespace(
        finished_req_ids=finished or set(),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=k, prompt_token_ids=[0] * n) for k, n in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(running), num_output_tokens=list(running.values())
        ),
        num_scheduled_tokens=tokens or dict.fromkeys(requests, 1),
    )


@dataclass
class Heard:
    """What the daemon would know after all of it."""

    now_s: float = 0.0
    told: list[Working] = field(default_factory=list)
    busy: bool = False

    def tell(self, work: Working) -> bool:
        if not self.busy:
            assert wire.decode_client(wire.encode(work)) == work
            self.told.append(work)
        return not self.busy

    def known(self) -> dict[str, int]:
        names: dict[int, str] = {}
        made: dict[int, int] = {}
        for work in self.told:
            for number, name, _ in work.began:
                assert number not in names
                names[number], made[number] = name, 0
            for number, tokens in work.produced:
                made[number] = tokens
            for number in work.ended:
                del made[number]
        return {names[number]: tokens for number, tokens in made.items()}


def reporter(heard: Heard) -> Reporter:
    return Reporter(heard.tell, clock=lambda: heard.now_s)


STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans(), st.booleans()), max_size=30
)


@given(STEPS)
def test_what_was_told_adds_up_to_what_there_is(steps: list[tuple[int, int, bool, bool]]) -> None:
    """Also where the daemon was too busy to hear now and then."""
    heard = Heard()
    tells = reporter(heard)
    running: dict[str, int] = {}
    count = 0
    for comes, goes, busy, waits in steps:
        heard.busy = busy
        new = {f"r{count + k}": 10 for k in range(comes)}
        count += comes
        finished = set(list(running)[:goes])
        running = {name: made for name, made in running.items() if name not in finished}
        step = output(new, running, finished)
        tells.scheduled(step)
        if new or running:
            tells.begins(step, waited=waits)
            heard.now_s += 0.01
        running = {name: made + 1 for name, made in {**running, **dict.fromkeys(new, 0)}.items()}
    heard.busy = False
    tells.scheduled(output({}, running))
    tells.flush()
    assert heard.known() == running


def test_a_step_takes_from_its_begin_to_that_of_the_next() -> None:
    heard = Heard()
    tells = reporter(heard)
    steps = [
        (output({"a": 7}, tokens={"a": 7}), False, 0.5),  # a prefill of 7 tokens, half a second
        (output({}, {"a": 1}), False, 0.1),
        (output({"b": 9}, {"a": 2}, tokens={"b": 5, "a": 3}), False, 0.3),  # a part of b's prompt
        (output({}, {"b": 0, "a": 3}, tokens={"b": 4, "a": 1}), False, 0.2),  # and the rest
        (output({}, {"b": 1, "a": 4}), False, 0.1),
        (output({}, {"b": 2, "a": 5}), True, 7.0),  # memory was waited for: who knows how long
        (output({}, {"b": 3, "a": 6}), True, 0.0),
    ]
    for step, waited, lasts_s in steps:
        tells.scheduled(step)
        tells.begins(step, waited=waited)
        heard.now_s += lasts_s
    tells.flush()
    assert sum(work.prefilled_tokens for work in heard.told) == 7 + 5 + 4
    assert sum(work.prefills_s for work in heard.told) == pytest.approx(0.5 + 0.3 + 0.2)
    assert sum(work.steps for work in heard.told) == 1
    assert sum(work.steps_s for work in heard.told) == pytest.approx(0.1)


def test_a_pause_without_requests_is_no_step() -> None:
    heard = Heard()
    tells = reporter(heard)
    step = output({"a": 7})
    tells.scheduled(step)
    tells.begins(step, waited=False)
    tells.scheduled(output({}, {}, {"a"}))
    heard.now_s += 100
    step = output({"b": 7})
    tells.scheduled(step)
    tells.begins(step, waited=False)
    tells.flush()
    assert sum(work.prefills_s + work.steps_s for work in heard.told) == 0


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
        tells.begins(step, waited=False)
    assert 3 <= len(heard.told) <= 7


def test_many_requests_with_long_names_take_many_messages() -> None:
    heard = Heard()
    tells = reporter(heard)
    long = "\N{GRINNING FACE}" * 300
    many = {f"{long}-{k}": 1 for k in range(2 * WORKING_MAX + 1)}
    tells.scheduled(output(many))
    assert len(heard.told) == 3
    assert len(heard.known()) == len(many)
    assert all(name.startswith("?") for name in heard.known())
    tells.scheduled(output({}, {}, set(many)))
    assert heard.known() == {}
